"""A recording as what the live page opens."""

import json
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from scheduler.commands import Generate
from scheduler.recording import Planned, Turn, read_frames
from scheduler.replay import open_recording, play
from serving.commands.replay import main
from tests.properties.test_replay import record
from tests.scheduler.build import SETTINGS, SHAPES, ask
from tests.strategies import Workload, workloads


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads())
def test_the_timeline_of_a_recording_has_every_step_and_every_request(workload: Workload) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        record(workload, path, 2**30, b"key")
        sizes = [msgspec.msgpack.decode(one.plan)[1] for one in read_frames(path) if isinstance(one, Planned)]
        [frame] = play(open_recording(path)).timeline.file().frames
    assert len(frame.steps) == sum(size > 0 for size in sizes)
    assert sorted(story.rid for story in frame.stories) == sorted(request.rid for request in workload.requests)
    assert frame.omitted == 0
    for story in frame.stories:
        times = story.times
        assert sum(times.waited_ns.values()) == times.finished_ns - times.arrived_ns
    assert all(step.start_ns <= step.end_ns <= frame.now_ns for step in frame.steps)


def test_the_command_writes_it_without_a_token_of_the_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = ask("a", [41, 42, 43], 4)
    record(Workload(SHAPES, SETTINGS, {0: [(0, request)]}, (request,)), tmp_path / "run", 2**20, None)
    recorded = [one for one in read_frames(tmp_path / "run") if isinstance(one, Turn)]
    assert any(isinstance(command, Generate) for one in recorded for _, command in one.tick.commands)
    assert main([str(tmp_path / "run"), "--timeline", str(tmp_path / "out.json")]) == 0
    assert "plans are the same" in capsys.readouterr().out
    body = json.loads((tmp_path / "out.json").read_text())
    assert (body["format"], body["version"]) == ("radjax-timeline", 1)
    [story] = body["frames"][0]["stories"]
    assert story["prompt_tokens"] == 3
    assert set(story) == {
        *("rid", "group", "state", "outcome", "prompt_tokens", "cached_tokens", "computed_tokens", "output_tokens"),
        *("retractions", "times"),
    }


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = ask("a", [41, 42, 43], 4)
    record(Workload(SHAPES, SETTINGS, {0: [(0, request)]}, (request,)), tmp_path / "run", 2**20, None)
    assert main([str(tmp_path / "run"), "--timeline", str(tmp_path / "absent" / "out.json")]) == 1
    assert "No such file" in capsys.readouterr().err
