"""A stuck engine is noticed by its lack of progress, however alive its process is."""

import logging
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
import zmq

from scheduler.assembly import assemble
from scheduler.commands import FAILED, PauseGeneration, Progress, Shutdown
from scheduler.loop import run
from scheduler.start import Endpoints
from scheduler.watchdog import RESTING, Heartbeat, Patience, Watchdog, stacks
from scheduler.zmq_channel import last_words
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask

# document: O-24, M-16


class Dog:
    """A watchdog whose clock and engine are the test's."""

    def __init__(self, soft_s: float = 10, hard_s: float = 30) -> None:
        self.now_s = 100.0
        self.percent = 50.0
        self.heartbeat = Heartbeat()
        self.ended: list[str] = []
        self.dog = Watchdog(
            self.heartbeat,
            Patience(soft_s, hard_s),
            lambda: '{"forward_count": 7}',
            self.ended.append,
            lambda: self.now_s,
            lambda: self.percent,
        )

    def pass_time(self, seconds: int, *, beating: bool = False) -> None:
        for _ in range(seconds):
            self.now_s += 1
            self.heartbeat.count += beating
            self.dog.look()


def test_a_stuck_engine_is_logged_once_with_state_and_stacks_and_then_ended(caplog: pytest.LogCaptureFixture) -> None:
    test = Dog()
    test.heartbeat.count = 5
    test.pass_time(11)
    assert len(caplog.records) == 1
    assert '{"forward_count": 7}' in caplog.text
    assert "test_watchdog.py" in caplog.text
    test.pass_time(15)
    assert len(caplog.records) == 1
    assert test.ended == []
    test.pass_time(10)
    assert len(test.ended) == 1
    assert test.ended[0].startswith("Scheduler watchdog timeout: no progress for ")


def test_progress_and_rest_are_no_reason_to_bark(caplog: pytest.LogCaptureFixture) -> None:
    test = Dog()
    test.heartbeat.count = 1
    test.pass_time(100, beating=True)
    test.heartbeat.count = RESTING
    test.pass_time(100)
    test.heartbeat.count = 3
    test.pass_time(9)
    assert caplog.records == []
    assert test.ended == []


def test_both_limits_can_be_off() -> None:
    test = Dog(0, 0)
    test.heartbeat.count = 1
    test.pass_time(1000)
    assert test.ended == []


def test_memory_over_ninety_per_cent_is_reported_when_it_gets_there(caplog: pytest.LogCaptureFixture) -> None:
    test = Dog()
    test.pass_time(30)
    test.percent = 91.0
    test.pass_time(60)
    assert [record.getMessage() for record in caplog.records] == ["High memory usage detected: 91.0 %"]


def test_the_watchdog_survives_its_own_errors_and_says_the_state_when_asked(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    done = threading.Event()

    def dump() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("half a state")
        done.set()
        return "whole"

    dog = Watchdog(Heartbeat(), Patience(0, 0), dump, lambda reason: None)
    with caplog.at_level(logging.INFO):
        dog.start()
        dog.ask()
        while not calls:
            threading.Event().wait(0.01)
        dog.ask()
        assert done.wait(20)
        dog.close()
    assert "the watchdog failed" in caplog.text
    assert "whole" in caplog.text


def test_the_stacks_of_all_threads_are_bounded_text() -> None:
    assert "test_the_stacks_of_all_threads" in stacks()


def test_an_engine_beats_while_it_works_and_rests_when_idle_or_paused() -> None:
    heartbeat = Heartbeat()
    counts: list[int] = []

    class Port(ScriptedPort):
        def wait(self, limit_s: float | None = None):
            counts.append(heartbeat.count)
            return super().wait(None)

        def poll(self):
            tick = super().poll()
            polled.append(heartbeat.count)
            return tick

    polled: list[int] = []
    script = {
        0: [(0, ask("a", [1, 2, 3], 9))],
        4: [(0, PauseGeneration(call="p", mode="in_place"))],
        60: [(0, Shutdown())],
    }
    run(assemble(Port(script), KVEchoRunner(SHAPES), SETTINGS, (heartbeat,)), SETTINGS.depth)
    assert counts
    assert set(counts[1:]) == {RESTING}
    assert max(polled) > 4


STUCK = """
import threading
from scheduler.assembly import assemble
from scheduler.commands import Shutdown
from scheduler.loop import run
from scheduler.state import dump_text
from scheduler.watchdog import Heartbeat, Patience, Watchdog
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask
import os, sys

class Stuck:
    def __init__(self, handle): self.handle = handle
    def ready(self): return False
    def result(self): threading.Event().wait()

class Runner(KVEchoRunner):
    def launch(self, step): return Stuck(super().launch(step))

def leave(reason):
    print(reason, flush=True)
    os._exit(1)

heartbeat = Heartbeat()
engine = assemble(ScriptedPort({0: [(0, ask("a", [1, 2, 3], 9))]}), Runner(SHAPES), SETTINGS, (heartbeat,))
dog = Watchdog(heartbeat, Patience(0.05, 0.2), lambda: dump_text(engine.state()), leave)
dog.start()
run(engine, 0)
"""


def test_an_injected_stuck_step_ends_the_process_with_the_reason() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", STUCK], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stdout.startswith("Scheduler watchdog timeout: no progress")
    assert "has made no progress" in done.stderr
    assert '"rids":["a"]' in done.stderr
    assert "in result" in done.stderr


def test_the_last_words_reach_the_collector_from_any_thread(tmp_path: Path) -> None:
    endpoints = Endpoints(str(tmp_path))
    with zmq.Context() as context, context.socket(zmq.PULL) as collector:
        collector.bind(endpoints.stats)
        speaker = threading.Thread(target=last_words, args=(endpoints, "stuck for 300 s"))
        speaker.start()
        assert collector.poll(20_000)
        told = msgspec.msgpack.decode(collector.recv(), type=Progress)
        speaker.join()
    assert (told.stage, told.detail) == (FAILED, "stuck for 300 s")
