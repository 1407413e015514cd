"""The real engine hangs or fails under a real launcher: what is said, what clients see, and what is left behind."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.commands.replay import main as replay_command
from tests.serving.process.service import ROOT, WAIT_S, Service, body, serving

# document: O-24, O-33

TINY = ROOT / "tests" / "golden" / "models" / "llama"
SMALL = ("cache.max_total_tokens=256", "scheduler.max_running_requests=2", "scheduler.chunk_tokens=64")
START_S = 120.0
"""A first start compiles."""
PATIENCE = ("observe.watchdog_soft_s=1", "observe.watchdog_hard_s=4")


@contextmanager
def trapped(tmp_path: Path) -> Iterator[Service]:
    """A tiny model with random weights, served by the engine with the trap, and recorded."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).symlink_to(TINY / name)
    settings = (*SMALL, *PATIENCE, f"observe.record={tmp_path / 'run'}", f"observe.crash_dump_dir={tmp_path / 'dumps'}")
    with serving(tmp_path, *settings, module="tests.serving.process.trapped_engine") as service:
        service.wait_for("/readyz", 200, START_S)
        yield service


def fatal(service: Service, kind: str) -> list[str]:
    """The data of the events of the request that springs the trap."""
    asked = {**body([65, 66], 200, stream=True), "routing_key": kind}
    with service.client.stream("POST", "/generate", json=asked) as response:
        assert response.status_code == 200, response.read()
        return [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]


def engine_pid(service: Service) -> int:
    """Found by its command line."""
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
    [pid] = [pid for pid in children if b"trapped_engine" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return int(pid)


def wait_for(service: Service, words: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while words not in service.said:
        assert time.monotonic() < deadline, service.said
        time.sleep(0.05)


def check_end(service: Service, events: list[str], folder: Path, reason: str) -> None:
    """The stream ended with an error, the launcher with the reason; recording and crash dump tell what was asked."""
    assert len(events) > 2
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["error"]["code"] == "engine_dead"
    assert service.wait() == 1
    [last] = [line for line in service.said.splitlines() if line.startswith("radjax: error: ")]
    assert "the engine process" in last
    assert reason in last
    assert replay_command([str(folder / "run")]) == 0
    [dump] = (folder / "dumps").iterdir()
    head, *asked = map(json.loads, dump.read_text().splitlines())
    assert "the engine process" in head["reason"]
    assert (asked[-1]["body"]["input_ids"], asked[-1]["how"]) == ([65, 66], "engine_dead")
    assert (
        asked[-1]["output_ids"][:2] == [token for event in events[:-2] for token in json.loads(event)["output_ids"]][:2]
    )


def test_a_hung_engine_is_dumped_then_ended_and_leaves_a_recording(tmp_path: Path) -> None:
    with trapped(tmp_path) as service:
        os.kill(engine_pid(service), signal.SIGUSR1)
        wait_for(service, "the state was asked for; scheduler state: {")
        assert service.generate([65], 2).status_code == 200  # it goes on
        events = fatal(service, "stuck")
        check_end(service, events, tmp_path, "Scheduler watchdog timeout: no progress for ")
        said = service.said
        soft = said.index("the engine has made no progress for")
        assert soft < said.index("Scheduler watchdog timeout")
        dump = said[soft:].partition("scheduler state: ")[2].partition("\n")[0]
        assert json.loads(dump)["running_batch"]["size"] == 1
        assert "trapped_engine.py" in said[soft:], "the stacks name where it hangs"


def test_a_failing_engine_leaves_its_state_and_a_recording(tmp_path: Path) -> None:
    with trapped(tmp_path) as service:
        events = fatal(service, "crash")
        check_end(service, events, tmp_path, "RuntimeError: injected failure")
        dump = service.said.partition("the scheduler failed; its state: ")[2].partition("\n")[0]
        assert json.loads(dump)["running_batch"]["size"] == 1
