"""Real traces of a tiny model's steps on the CPU, opened again."""

import dataclasses
import gzip
import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.schema import Model, Parallel
from model.batch import Program
from model.device_state import allocate, state_shapes
from model.interface import Family, ProfileRefused, Variant
from model.loading.folder import model_folder
from model.loading.hf_config import read_config
from model.pipeline import Stage
from model.profile import DeviceProfiler
from model.programs import Programs
from model.recipe import Recipe
from model.registry import blueprint
from model.rehearsal import rehearse
from model.runner import JaxRunner, LaunchHooks
from model.weights import load_weights
from sharding.mesh import build_mesh
from tests.model.harness import GOLDEN, NUM_PAGES, tiny_shapes
from tests.model.test_trace_schedule import options

FOLDER = GOLDEN / "models" / "llama"
SHAPES = dataclasses.replace(tiny_shapes(512), decode_rows=(2,), mixed_tokens=(32,))
XPROF = """
import json, sys
from xprof.convert.raw_to_tool_data import xspace_to_tool_data, xspace_to_tool_names
read, _ = xspace_to_tool_data(sys.argv[1:], "trace_viewer", {})
print(json.dumps({"tools": xspace_to_tool_names(sys.argv[1:]), "events": json.loads(read)["traceEvents"]}))
"""
"""TensorBoard's profile page without the page. In a process of its own, as it brings what jaxlib has once more."""
DECODE, MIXED = Program(Family.DECODE, Variant.LEAN, 2), Program(Family.MIXED, Variant.LEAN, 32)


class Profiled:
    """A runner whose steps a profiler watches."""

    def __init__(self) -> None:
        model = blueprint(read_config(model_folder(FOLDER)), build_mesh(Parallel()), "float32")
        recipe = Recipe(model, SHAPES, state_shapes(model, SHAPES, NUM_PAGES))
        self.programs = Programs([recipe], (16, 64), lambda report: None)
        self.programs.start()
        for program in (DECODE, MIXED):
            self.programs.wait(program)
        leaves = load_weights(Model(source=str(FOLDER)), model_folder(FOLDER), model, lambda done, total: None)
        self.leaves, self.recipe = tuple(leaves.values()), recipe
        self.count = 0

    def use(self, profiler: DeviceProfiler) -> None:
        hooks = LaunchHooks((profiler.launching,), (profiler.launched,))
        self.count = 0
        self.profiler = profiler
        stage = Stage(self.leaves, allocate(self.recipe.state), self.recipe.model.mesh)
        self.runner = JaxRunner(self.programs, [stage], SHAPES, hooks)

    def step(self, program: Program = DECODE, times: int = 1) -> None:
        for _ in range(times):
            self.count += 1
            with self.profiler.phase("launch"):
                handle = self.runner.launch(dataclasses.replace(rehearse(program, SHAPES), step=self.count))
            handle.result()


@pytest.fixture(scope="module")
def shared() -> Iterator[Profiled]:
    profiled = Profiled()
    yield profiled
    profiled.programs.close()


@pytest.fixture
def profiled(shared: Profiled, tmp_path: Path) -> Profiled:
    shared.use(DeviceProfiler(str(tmp_path / "traces")))
    return shared


def names(trace: Path) -> list[tuple[str, str | None]]:
    """Name and step number of every step in a Chrome trace."""
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    return [(event["name"], event["args"]["step_num"]) for event in events if "step_num" in event.get("args", {})]


def test_a_trace_holds_the_asked_steps_by_family_bucket_and_rows(profiled: Profiled, tmp_path: Path) -> None:
    # documents: M-10, O-32
    profiled.step(times=2)
    folder = profiled.profiler.start(options(num_steps=3, start_step=4, profile_id="mine"))
    profiled.step(times=2)
    profiled.step(MIXED)
    profiled.step()
    assert folder == tmp_path / "traces"
    trace = folder / "mine-trace_6.json.gz"
    assert [path.name for path in folder.glob("*.json.gz")] == [trace.name]
    assert sorted(names(trace), key=lambda step: str(step[1])) == [
        ("decode 2", "4"),
        ("mixed 32", "5"),
        ("decode 2", "6"),
    ]
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    assert any(event["name"] == "launch" for event in events)
    (step,) = [event for event in events if event.get("args", {}).get("step_num") == "5"]
    assert step["args"]["rows"] == str(int((rehearse(MIXED, SHAPES).lengths > 0).sum()))
    # what TensorBoard reads
    assert [run.name for run in (folder / "plugins" / "profile").iterdir()] == ["mine-trace_6"]
    assert list((folder / "plugins" / "profile" / "mine-trace_6").glob("*.xplane.pb"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    profiled.step()
    profiled.profiler.start(options(num_steps=1))
    profiled.profiler.stop()


def test_the_reader_of_tensorboard_finds_the_steps_and_the_phases_of_the_host(profiled: Profiled) -> None:
    # documents: M-10, O-32
    folder = profiled.profiler.start(options(num_steps=3, profile_id="read"))
    profiled.step()
    profiled.step(MIXED)
    profiled.step()
    [written] = (folder / "plugins" / "profile" / "read-trace_3").glob("*.xplane.pb")
    command = [sys.executable, "-c", XPROF, str(written)]
    read = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    steps = [event for event in read["events"] if "step_num" in event.get("args", {})]
    assert "trace_viewer@" in read["tools"]
    # it puts the number behind the name
    assert [step["name"] for step in steps] == ["decode 2 1", "mixed 32 2", "decode 2 3"]
    assert {step["args"]["variant"] for step in steps} == {"lean"}
    assert int(steps[1]["args"]["rows"]) == int((rehearse(MIXED, SHAPES).lengths > 0).sum())
    assert all(step["dur"] > 0 for step in steps)
    launches = [event for event in read["events"] if event.get("name") == "launch"]
    for step in steps[:-1]:  # the trace ends inside the last one's
        assert any(
            phase["ts"] <= step["ts"] and step["ts"] + step["dur"] <= phase["ts"] + phase["dur"] for phase in launches
        ), "a step is launched in a phase of that name"


def test_one_profile_at_a_time_and_none_to_stop_in_the_documents_words(profiled: Profiled) -> None:
    # document: M-10
    with pytest.raises(ProfileRefused, match=r"^Profiling is not in progress. Call /start_profile first.$"):
        profiled.profiler.stop()
    profiled.profiler.start(options())
    profiled.step()
    with pytest.raises(ProfileRefused, match=r"^Profiling is already in progress. Call /stop_profile first.$"):
        profiled.profiler.start(options())
    profiled.profiler.stop()


def test_until_stopped_and_twice_the_same_name(shared: Profiled, tmp_path: Path) -> None:
    # document: M-10
    for _ in range(2):  # as after a restart
        shared.use(DeviceProfiler(str(tmp_path)))
        shared.profiler.start(options(profile_id="same"))
        shared.step()
        shared.profiler.stop()
    assert {path.name for path in tmp_path.glob("*.gz")} == {"same-trace_1.json.gz", "same-trace_1-2.json.gz"}


def test_each_stage_has_its_own_file(profiled: Profiled) -> None:
    # documents: M-10, O-32
    folder = profiled.profiler.start(options(profile_id="stage", profile_by_stage=True, num_steps=1))
    profiled.step(MIXED)
    profiled.step()
    assert names(folder / "stage-PREFILL-trace_1.json.gz") == [("mixed 32", "1")]
    assert names(folder / "stage-DECODE-trace_2.json.gz") == [("decode 2", "2")]


def test_a_schedule_throws_its_warm_up_away(profiled: Profiled) -> None:
    # document: O-32
    folder = profiled.profiler.start(options(profile_id="s", wait_steps=1, warmup_steps=1, active_steps=1, repeat=2))
    profiled.step(times=7)
    assert names(folder / "s-trace_3.json.gz") == [("decode 2", "3")]
    assert names(folder / "s-trace_6.json.gz") == [("decode 2", "6")]
    assert len(list((folder / "plugins" / "profile").iterdir())) == 2
    profiled.profiler.start(options(profile_id="cut", warmup_steps=3, active_steps=1))
    profiled.step()
    profiled.profiler.stop()
    assert len(list((folder / "plugins" / "profile").iterdir())) == 2


@pytest.mark.parametrize("asked", [True, False])
def test_python_calls_and_programs_are_there_only_when_asked_for(profiled: Profiled, asked: bool) -> None:
    # document: M-10
    folder = profiled.profiler.start(options(profile_id="p", num_steps=1, with_stack=asked, record_shapes=asked))
    profiled.step()
    with gzip.open(folder / "p-trace_1.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert (
        any(event["name"].startswith("$") and "runner.py" in event["name"] for event in events if "dur" in event)
        == asked
    )
    (plane,) = (folder / "plugins" / "profile" / "p-trace_1").glob("*.xplane.pb")
    assert (b"Hlo Proto" in plane.read_bytes()) == asked


def test_a_memory_snapshot_needs_no_trace(profiled: Profiled) -> None:
    # document: M-10
    folder = profiled.profiler.start(options(activities=("MEM",), num_steps=1, profile_id="m"))
    profiled.step()
    assert [path.name for path in folder.iterdir()] == ["m-trace_1.memory.prof"]
    assert gzip.decompress((folder / "m-trace_1.memory.prof").read_bytes())


def test_without_a_folder_a_private_one_is_made(shared: Profiled) -> None:
    # document: M-10
    shared.use(DeviceProfiler(None))
    folder = shared.profiler.start(options(num_steps=1, activities=("MEM",)))
    assert re.search(r"radjax-profile-", folder.name)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    shared.profiler.stop()


def test_a_folder_that_cannot_be_made_is_an_answer(shared: Profiled, tmp_path: Path) -> None:
    # document: M-10
    (tmp_path / "file").touch()
    shared.use(DeviceProfiler(str(tmp_path / "file" / "below")))
    with pytest.raises(ProfileRefused, match=r"Cannot write to the output folder"):
        shared.profiler.start(options())
    with pytest.raises(ProfileRefused, match=r"not in progress"):
        shared.profiler.stop()
