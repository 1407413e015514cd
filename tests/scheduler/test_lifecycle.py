import json
import logging

import pytest
from msgspec import structs

from scheduler.assembly import Settings, assemble
from scheduler.commands import Abort, Command, ContinueGeneration, PauseGeneration, Shutdown
from scheduler.lifecycle import Lifecycle
from scheduler.loop import run
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask

# document: O-34


def lines_of(
    script: dict[int, list[Command]], caplog: pytest.LogCaptureFixture, settings: Settings = SETTINGS
) -> list[dict[str, object]]:
    turns = {turn: [(0, command) for command in commands] for turn, commands in script.items()}
    port = ScriptedPort({**turns, 900: [(0, Shutdown())]})
    with caplog.at_level(logging.INFO, "scheduler.lifecycle"):
        run(assemble(port, KVEchoRunner(SHAPES), settings, (Lifecycle(lambda: 12.5),)), settings.depth)
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "scheduler.lifecycle"]
    assert all(line["timestamp"] == 12.5 for line in lines)
    return lines


def of(rid: str, lines: list[dict[str, object]]) -> list[dict[str, object]]:
    return [line for line in lines if line["request_id"] == rid]


def test_every_request_is_queued_processed_and_finished_in_that_order(caplog: pytest.LogCaptureFixture) -> None:
    script: dict[int, list[Command]] = {
        0: [ask(f"r{i}", [1, 2, i], 6) for i in range(6)],
        3: [PauseGeneration(call="p", mode="retract")],
        20: [ContinueGeneration(call="c")],
    }
    lines = lines_of(script, caplog)
    for index in range(6):
        mine = of(f"r{index}", lines)
        events = [line["event"] for line in mine]
        assert events in (
            ["queued", "processing", "finished"],
            ["queued", "processing", "retracted", "processing", "finished"],
        )
        assert mine[0]["queue_position"] == index + 1
        assert mine[1]["batch_size"]
        assert mine[-1]["reason"] == "length"
    assert any(line["event"] == "retracted" for line in lines)


def test_a_request_that_ends_in_the_queue_is_finished_too(caplog: pytest.LogCaptureFixture) -> None:
    requests: list[Command] = [ask(f"r{i}", [1, 2, i], 40) for i in range(6)]
    lines = lines_of({0: requests, 4: [Abort(rid="r5")]}, caplog)
    assert [line["event"] for line in of("r5", lines)] == ["queued", "finished"]
    assert of("r5", lines)[1]["reason"] == "abort"


def test_a_request_that_waited_too_long_is_finished_and_one_refused_at_once_never_queued(
    caplog: pytest.LogCaptureFixture,
) -> None:
    impatient = structs.replace(SETTINGS, waiting_timeout_ns=20_000)  # a reading of the clock takes a microsecond
    requests: list[Command] = [ask(f"r{i}", [1, 2, i], 50) for i in range(5)]
    lines = lines_of({0: [*requests, ask("huge", [1] * 65, 1)]}, caplog, impatient)
    assert [line["event"] for line in of("r4", lines)] == ["queued", "finished"]
    assert of("huge", lines) == []
