import json
import logging

import pytest

from scheduler.assembly import assemble
from scheduler.commands import ContinueGeneration, PauseGeneration, Shutdown
from scheduler.lifecycle import Lifecycle
from scheduler.loop import run
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask

# document: O-34


def test_every_request_is_queued_processed_and_finished_in_that_order(caplog: pytest.LogCaptureFixture) -> None:
    requests = [(0, ask(f"r{i}", [1, 2, i], 6)) for i in range(6)]
    port = ScriptedPort(
        {
            0: requests,
            3: [(0, PauseGeneration(call="p", mode="retract"))],
            20: [(0, ContinueGeneration(call="c"))],
            900: [(0, Shutdown())],
        }
    )
    with caplog.at_level(logging.INFO, "scheduler.lifecycle"):
        run(assemble(port, KVEchoRunner(SHAPES), SETTINGS, (Lifecycle(lambda: 12.5),)), SETTINGS.depth)
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "scheduler.lifecycle"]
    assert all(line["timestamp"] == 12.5 for line in lines)
    for index in range(6):
        mine = [line for line in lines if line["request_id"] == f"r{index}"]
        events = [line["event"] for line in mine]
        assert events in (
            ["queued", "processing", "finished"],
            ["queued", "processing", "retracted", "processing", "finished"],
        )
        assert mine[0]["queue_position"] == index + 1
        assert mine[1]["batch_size"] > 0
    assert any(line["event"] == "retracted" for line in lines)
