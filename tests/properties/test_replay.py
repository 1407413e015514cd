"""A recording, fed back, leads to the same plans."""

import tempfile
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.schema import Observe
from model.interface import Shapes
from scheduler.assembly import Settings, assemble
from scheduler.commands import Finished, Generate, SamplingParams, Shutdown
from scheduler.loop import run
from scheduler.planner import Plan
from scheduler.recording import Frame, Full, Planned, Recorder, Tokens, Turn, open_recorder, read_frames
from scheduler.replay import ReplayError, replay
from scheduler.tick import Tick
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask
from tests.strategies import Workload, workloads


def record(workload: Workload, path: Path, limit_bytes: int, key: bytes | None) -> None:
    script = {turn: list(commands) for turn, commands in workload.script.items()}
    script[10_000] = [(0, Shutdown())]
    recorder = Recorder(path.open("wb"), workload.shapes, workload.settings, limit_bytes, key)
    runner = KVEchoRunner(workload.shapes)
    run(assemble(ScriptedPort(script), runner, workload.settings, (recorder,)), workload.settings.depth)
    recorder.close()


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads(), key=st.sampled_from([None, b"one key", b"another key"]))
def test_a_replayed_recording_gives_the_same_plans_byte_for_byte(workload: Workload, key: bytes | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        record(workload, path, 2**30, key)
        plans = sum(isinstance(frame, Planned) for frame in read_frames(path))
        assert replay(path) == plans > 0


def write(path: Path, frames: list[Frame]) -> None:
    encoded = [msgspec.msgpack.encode(frame) for frame in frames]
    path.write_bytes(b"".join(len(data).to_bytes(4, "little") + data for data in encoded))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads(), limit=st.integers(400, 3000))
def test_a_recording_keeps_within_its_limit_and_its_beginning_replays(workload: Workload, limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        record(workload, path, limit, None)
        assert path.stat().st_size <= limit
        frames = list(read_frames(path))
        if len(frames) > 1:
            assert replay(path) >= 0
        assert all(not isinstance(frame, Full) for frame in frames[:-1])


def small_run(tmp_path: Path, key: bytes | None) -> tuple[Workload, Path]:
    shapes = Shapes((1, 2), (8,), 4, 2, 2, 2, 2, 8, 50)
    setting = Settings(context_length=16, num_pages=16, max_rows=2, depth=1, max_inflight=1, eos_ids=(7,))
    params = SamplingParams(max_new_tokens=5, seed=1, stop_token_ids=(9,), logit_bias=((11, 1.0),))
    request = Generate(rid="a", prompt=[3, 3, 4, 5], params=params)
    workload = Workload(shapes, setting, {0: [(0, request)]}, (request,))
    record(workload, tmp_path / "run", 2**20, key)
    return workload, tmp_path / "run"


def test_token_ids_are_permuted_with_the_key_unless_wanted_in_clear(tmp_path: Path) -> None:
    def prompt(key: bytes | None) -> list[int]:
        _, path = small_run(tmp_path, key)
        commands = [c for frame in read_frames(path) if isinstance(frame, Turn) for _, c in frame.tick.commands]
        return next(command.prompt for command in commands if isinstance(command, Generate))

    assert prompt(None) == [3, 3, 4, 5]
    hidden = prompt(b"k")
    assert hidden != [3, 3, 4, 5]
    assert hidden[0] == hidden[1]
    assert len(set(hidden)) == 3
    assert hidden != prompt(b"other")


def test_a_changed_token_is_noticed_as_a_different_plan(tmp_path: Path) -> None:
    _, path = small_run(tmp_path, None)
    frames = list(read_frames(path))
    changed = [Tokens([7]) if isinstance(frame, Tokens) else frame for frame in frames]
    write(path, changed)
    with pytest.raises(ReplayError, match="differs"):
        replay(path)


def test_a_file_cut_off_in_a_frame_still_replays(tmp_path: Path) -> None:
    _, path = small_run(tmp_path, None)
    whole = replay(path)
    path.write_bytes(path.read_bytes()[:-3])
    assert 0 < replay(path) <= whole


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ReplayError, match="does not begin"):
        replay(tmp_path / "empty")
    for noise in (b"\x05\0\0\0hello", b"\xff\xff\xff\xff", b"\x01\0\0\0\xc0"):
        (tmp_path / "noise").write_bytes(noise)
        with pytest.raises(ReplayError, match="is no recording"):
            replay(tmp_path / "noise")


def test_a_full_disk_ends_the_recording_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    port = ScriptedPort({0: [(0, ask("a", [1, 2, 3], 5))], 9: [(0, Shutdown())]})
    with Path("/dev/full").open("wb") as full:
        recorder = Recorder(full, SHAPES, SETTINGS, 2**20, None)
        run(assemble(port, KVEchoRunner(SHAPES), SETTINGS, (recorder,)), SETTINGS.depth)
        recorder.close()
    assert not recorder.recording
    assert isinstance(port.answers[-1][1], Finished)
    assert [record.getMessage().partition(":")[0] for record in caplog.records][0] == "the recording ends here"


def test_a_recording_that_cannot_be_written_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    observe = Observe(record=str(tmp_path / "absent" / "run"))
    with pytest.raises(ConfigError, match="observe.record: cannot write the recording: No such file"):
        open_recorder(observe, SHAPES, SETTINGS)


@pytest.mark.parametrize(("token_ids", "clear"), [("hashed", False), ("clear", True)])
def test_the_launch_file_decides_whether_token_ids_can_be_read(
    token_ids: Literal["hashed", "clear"], clear: bool, tmp_path: Path
) -> None:
    prompt = list(range(1, 25))
    recorder = open_recorder(Observe(record=str(tmp_path / "run"), record_token_ids=token_ids), SHAPES, SETTINGS)
    assert recorder is not None
    recorder.observe(Tick(1, 0, [(0, ask("a", prompt, 5))]))
    recorder.close()
    [turn] = [frame for frame in read_frames(tmp_path / "run") if isinstance(frame, Turn)]
    [(_, command)] = turn.tick.commands
    assert isinstance(command, Generate)
    assert (command.prompt == prompt) is clear
    assert open_recorder(Observe(), SHAPES, SETTINGS) is None


def test_equal_plans_have_equal_bytes_and_others_do_not() -> None:
    assert Plan().canonical() == Plan().canonical() != Plan(size=2).canonical()
