"""The lines that the steps of an engine leave in the log."""

import logging
import re

import pytest

from scheduler.assembly import assemble
from scheduler.commands import Command, Shutdown
from scheduler.loop import run
from scheduler.step_log import StepLog
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
    assert lines == [
        "prefill: #queue_req: 0, #can_run_req: 1, #new_token: 32, new_token_ratio: 1.000, #running_reqs: 1",
        "prefill: #queue_req: 0, #can_run_req: 1, #new_token: 8, new_token_ratio: 0.250",
    ]


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
        r"gen_throughput: (\d+\.\d{3}), bucket: 4, padding: 1"
    )
    found = [re.fullmatch(pattern, line) for line in lines]
    assert all(found), lines
    pool = SETTINGS.num_pages * SHAPES.page_size
    for match in filter(None, found):
        assert match[2] == f"{int(match[1]) / pool:.3f}"
        assert float(match[3]) > 0
