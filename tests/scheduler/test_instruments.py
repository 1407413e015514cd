"""What a launch file puts around an engine: records, step times, profiles, names of phases."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.schema import Observe
from model.interface import ProfileOptions, ProfileRefused
from scheduler.assembly import assemble
from scheduler.commands import Command, DumpState, GetState, Reply, Shutdown, StartProfile, StopProfile
from scheduler.instruments import instruments
from scheduler.loop import run
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask, play
from tests.scheduler.test_step_records import TimedRunner


class NamingProfiler:
    """Keeps the names of phases, in order, and refuses to stop."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.open = 0

    def start(self, options: ProfileOptions) -> Path:
        return Path(options.output_dir or "/nowhere")

    def stop(self) -> None:
        raise ProfileRefused("no")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        assert not self.open, "phases do not lie inside each other"
        self.open += 1
        self.phases.append(name)
        yield
        self.open -= 1


def served(observe: Observe, commands: dict[int, list[Command]]) -> tuple[NamingProfiler, ScriptedPort, KVEchoRunner]:
    profiler = NamingProfiler()
    around = instruments(observe, profiler)
    runner = TimedRunner(SHAPES, keep_steps=True)
    runner.watch = around.stopwatch
    turns = {turn: [(0, command) for command in each] for turn, each in commands.items()}
    port = ScriptedPort({**turns, 10_000: [(0, Shutdown())]})
    run(around.around(assemble(port, runner, SETTINGS, around.observers)), SETTINGS.depth)
    around.close()
    return profiler, port, runner


SCRIPT: dict[int, list[Command]] = {0: [ask("a", [1, 2, 3], 4)], 30: [GetState(call="now"), DumpState(call="dump")]}


def replies(port: ScriptedPort) -> dict[str, Reply]:
    return {answer.call: answer for _, answer in port.answers if isinstance(answer, Reply)}


def test_every_step_leaves_its_line_and_both_states_show_step_times(tmp_path: Path) -> None:
    # documents: V-2, M-18
    path = tmp_path / "steps.jsonl"
    asked = Observe(step_records=True, step_records_file=str(path), record_step_time=True)
    _, port, runner = served(asked, SCRIPT)
    assert [json.loads(line)["batch_id"] for line in path.read_text().splitlines()] == [s.step for s in runner.steps]
    for reply in replies(port).values():
        assert list(json.loads(str(reply.state["step_time_dict"]))) == ["1"]


def test_by_default_nothing_is_timed_and_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # documents: V-2, M-18
    monkeypatch.chdir(tmp_path)
    _, port, runner = served(Observe(), SCRIPT)
    assert list(tmp_path.iterdir()) == []
    assert "step_time_dict" not in replies(port)["now"].state
    assert port.answers == play(SCRIPT).port.answers
    assert runner.watch.launched_ns > 0  # told of launches; nobody reads it


def test_phases_are_named_and_profiles_are_answered() -> None:
    # documents: M-10, O-32
    commands: dict[int, list[Command]] = {0: [StartProfile(call="a", output_dir="/there"), StopProfile(call="b")]}
    profiler, port, _ = served(Observe(), commands)
    assert profiler.phases[:5] == ["receive", "emit", "plan", "launch", "receive"]
    asked = replies(port)
    assert (asked["a"].success, asked["a"].message, asked["a"].state) == (True, "Succeeded", {"output_dir": "/there"})
    assert (asked["b"].success, asked["b"].message) == (False, "no")
