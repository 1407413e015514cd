"""The lines that the steps of an engine leave in the log."""

import logging
import re

import msgspec
import pytest

from scheduler.assembly import assemble
from scheduler.commands import Command, Shutdown, StepStats
from scheduler.loop import run
from scheduler.planner import Plan
from scheduler.step_log import StepLog, decode_line
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask

BUDGET = SHAPES.mixed_tokens[-1]


def lines_of(script: dict[int, list[Command]], interval: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What an engine logs at ``info`` while it serves the script."""
    turns = {turn: [(0, command) for command in commands] for turn, commands in script.items()}
    turns[1_000] = [(0, Shutdown())]
    with caplog.at_level(logging.INFO, "scheduler.step_log"):
        lines = StepLog(interval, BUDGET)
        run(assemble(ScriptedPort(turns), KVEchoRunner(SHAPES), SETTINGS, (lines,)), SETTINGS.depth)
    return [record.getMessage() for record in caplog.records if record.name == "scheduler.step_log"]


def test_every_step_with_pieces_leaves_a_line_that_accounts_for_its_tokens(caplog: pytest.LogCaptureFixture) -> None:
    # document: M-4
    lines = lines_of({0: [ask("a", list(range(1, 41)), 1)]}, 1, caplog)
    assert [re.sub(r"input_throughput: \d+\.\d{3} token/s", "RATE", line) for line in lines] == [
        "prefill: #queue_req: 0, #can_run_req: 1, #new_token: 32, new_token_ratio: 1.000, #running_reqs: 1, "
        "#cached_token: 0, RATE, bucket: 32, padding: 0",
        "prefill: #queue_req: 0, #can_run_req: 1, #new_token: 8, new_token_ratio: 0.250, "
        "#cached_token: 0, RATE, bucket: 8, padding: 0",
    ]


def test_a_prefill_line_says_what_came_from_the_cache_and_what_is_padding(caplog: pytest.LogCaptureFixture) -> None:
    prompt = list(range(1, 21))
    line = lines_of({0: [ask("a", prompt, 1)], 9: [ask("b", [*prompt, 7, 8, 9], 1)]}, 1, caplog)[-1]
    assert "#new_token: 3," in line
    assert "#cached_token: 20," in line
    assert line.endswith("bucket: 8, padding: 5")


def test_a_prefill_line_counts_the_queue_and_what_decode_rows_leave_of_the_budget(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # document: M-4
    script: dict[int, list[Command]] = {0: [ask(str(i), [i + 1], 30) for i in range(3)]}
    script[5] = [ask("p", [7, 8, 9], 30), ask("q", [7, 8], 1)]
    [line] = [line for line in lines_of(script, 1_000, caplog) if "#queue_req: 1" in line]
    assert f"#can_run_req: 1, #new_token: 3, new_token_ratio: {3 / (BUDGET - 3):.3f}, #running_reqs: 4" in line


def test_decode_lines_come_every_so_many_decode_steps_and_name_the_program(caplog: pytest.LogCaptureFixture) -> None:
    # document: M-5
    requests: list[Command] = [ask(str(i), [i + 1], 20) for i in range(3)]
    lines = lines_of({0: requests}, 5, caplog)
    assert len(lines) == 20 // 5 - 1  # nothing runs after the last step
    pattern = (
        r"decode: #running_req: 3, #queue_req: 0, #token: (\d+), token_usage: (0\.\d{3}), "
        r"gen_throughput: (\d+\.\d{3}) token/s, bucket: 4, padding: 1"
    )
    found = [re.fullmatch(pattern, line) for line in lines]
    assert all(found), lines
    pool = SETTINGS.num_pages * SHAPES.page_size
    for match in filter(None, found):
        assert match[2] == f"{int(match[1]) / pool:.3f}"
        assert float(match[3]) > 0


def test_a_rest_begins_the_count_of_decode_steps_anew(caplog: pytest.LogCaptureFixture) -> None:
    # document: O-22
    one: dict[int, list[Command]] = {0: [ask("a", [1], 14)]}
    assert len(lines_of(one, 10, caplog)) == 1
    caplog.clear()
    lines = lines_of({**one, 300: [ask("b", [2], 10)], 600: [ask("c", [3], 14)]}, 10, caplog)
    assert len([line for line in lines if line.startswith("decode")]) == 2  # of a and of c; b is too short for one


def test_a_decode_line_names_what_the_engine_does_not_have_only_once_it_has_it() -> None:
    # document: M-5, M-20
    plan = Plan(size=4)
    assert "grammar" not in decode_line(plan, stats())
    assert "spec" not in decode_line(plan, stats())
    assert "spec" not in decode_line(plan, stats(spec_accept_length=0.0))
    line = decode_line(plan, stats(num_grammar_queue=0, spec_accept_length=2.5))
    assert ", #grammar_queue_req: 0, spec_accept_length: 2.500, " in line


def stats(**given: float) -> StepStats:
    """All zero but what is given."""
    zeros = {field.name: 0 for field in msgspec.structs.fields(StepStats) if field.required}
    return msgspec.convert(zeros | given, StepStats)
