"""How long pipeline stages wait: the bubble at 1, 2 and 4 stages, and what the host does for a step.

    python -m tests.benchmarks.stages [--layers 12] [--rows 32] [--tokens 64]

All rows decode under the real scheduler, twice for each number of stages: on fake CPU devices with random weights, and
on stages that only let time pass. A stage is busy from when it has a step's input and has done with the step before
until its output is there; in the rest of the time it waits. Fake devices share the machine's cores: where there are
more stages than cores, each is busy longer and waits less than on a device of its own. Stages that let time pass, as
much as one fake device needs divided by their number, share nothing: what they wait is the schedule's and the host's
doing.
Prints a line for each and then JSON.
"""

import argparse
import json
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import jax
import numpy as np

from configs.resolve import in_flight
from configs.schema import Parallel
from model.batch import Program
from model.device_state import state_shapes
from model.interface import Family, Shapes, StepInput, StepOutput, Variant
from model.ladders import make_shapes
from model.loading.dummy import DummyCheckpoint
from model.pipeline import open_stages
from model.programs import Programs
from model.recipe import Recipe
from model.registry import joined, stage_blueprints
from model.runner import JaxRunner, LaunchHooks
from model.sections import Executable, compile_step
from model.spec import ModelSpec
from model.weights import assemble as assemble_weights
from model.weights import hugging_face_shapes
from scheduler.assembly import Settings, assemble
from scheduler.commands import Command, Generate, SamplingParams, Shutdown
from scheduler.loop import run
from scheduler.stopwatch import Stopwatch, TimedEngine, TimedStep
from sharding.mesh import build_mesh
from tests.fakes import EchoHandle, KVEchoRunner, ScriptedPort

STAGES: Final = (1, 2, 4)
CONTEXT: Final = 256
VOCAB: Final = 8192


@dataclass
class Timeline:
    """When each step was launched, and when each stage had done with it. In seconds."""

    stages: int
    launched: list[float] = field(default_factory=list)
    ended: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ended = [[] for _ in range(self.stages)]

    def waits(self, skip: int) -> list[float]:
        """Share of the time that each stage waits, without the first ``skip`` steps and as many last ones."""
        shares: list[float] = []
        for stage, ends in enumerate(self.ended):
            inputs = self.ended[stage - 1] if stage else self.launched
            busy = [end - max(before, given) for before, given, end in zip(ends, inputs[1:], ends[1:], strict=False)]
            kept = slice(skip, len(ends) - 1 - skip)
            shares.append(1 - sum(busy[kept]) / (ends[kept.stop] - ends[kept.start]))
        return shares

    def step_s(self, skip: int) -> float:
        """Seconds from step to step."""
        ends = self.ended[-1][skip:-skip]
        return (ends[-1] - ends[0]) / (len(ends) - 1)


@dataclass
class Watched:
    """An executable of one stage; a thread notes when each of its outputs is there."""

    compiled: Executable
    ended: list[float]
    outputs: "queue.Queue[jax.Array | None]" = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def __call__(self, *arguments: object) -> object:
        state, out = self.compiled(*arguments)
        self.outputs.put(jax.tree.leaves(out)[0])
        return state, out

    def _watch(self) -> None:
        while (output := self.outputs.get()) is not None:
            output.block_until_ready()
            self.ended.append(time.perf_counter())

    def close(self) -> None:
        self.outputs.put(None)
        self.thread.join()


@dataclass
class PassingHandle:
    """A step on its way through stages that let time pass."""

    echo: EchoHandle
    done: threading.Event = field(default_factory=threading.Event)

    def ready(self) -> bool:
        return self.done.is_set()

    def result(self) -> StepOutput:
        self.done.wait()
        return self.echo.result()


class PassingTime:
    """A runner whose stages take a given time each and nothing else."""

    host = None

    def __init__(self, shapes: Shapes, timeline: Timeline, seconds: float, watch: Stopwatch) -> None:
        self._echo = KVEchoRunner(shapes)
        self._timeline, self._seconds, self._watch = timeline, seconds, watch
        self._queues: list[queue.Queue[PassingHandle]] = [queue.Queue() for _ in range(timeline.stages)]
        for stage in range(timeline.stages):
            threading.Thread(target=self._work, args=(stage,), daemon=True).start()

    @property
    def shapes(self) -> Shapes:
        return self._echo.shapes

    def launch(self, step: StepInput) -> PassingHandle:
        self._watch.launching(step)
        handle = PassingHandle(self._echo.launch(step))
        self._timeline.launched.append(time.perf_counter())
        self._queues[0].put(handle)
        return handle

    def compiled_late(self) -> int:
        return 0

    def _work(self, stage: int) -> None:
        while True:
            handle = self._queues[stage].get()
            time.sleep(self._seconds)
            self._timeline.ended[stage].append(time.perf_counter())
            if stage + 1 < len(self._queues):
                self._queues[stage + 1].put(handle)
            else:
                handle.done.set()


@dataclass
class HostTime:
    """The host's work for each step, launching it on the devices apart."""

    host_s: list[float] = field(default_factory=list)
    launch_s: list[float] = field(default_factory=list)

    def timed(self, step: TimedStep) -> None:
        laps = step.laps
        self.host_s.append((laps.receive + laps.plan + laps.build + laps.commit + laps.emit) / 1e9)
        self.launch_s.append((laps.launch - laps.build) / 1e9)


def spec_of(layers: int, hidden: int) -> ModelSpec:
    """A Llama of that size."""
    return ModelSpec(
        architecture="llama",
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_heads=hidden // 64,
        num_kv_heads=max(1, hidden // 192),
        head_dim=64,
        vocab_size=VOCAB,
        context_length=CONTEXT,
        norm_eps=1e-5,
        rope_theta=1e4,
        rope_scaling=None,
        tie_embeddings=True,
        qkv_bias=False,
        qk_norm=False,
        dtype="bfloat16",
        eos_token_ids=(),
    )


def on_devices(
    spec: ModelSpec, shapes: Shapes, timeline: Timeline, hooks: LaunchHooks
) -> tuple[JaxRunner, list[Watched]]:
    """A runner on a fake device for each stage, each watched."""
    pages = shapes.max_rows * shapes.pages_per_row + 1
    parts = stage_blueprints(spec, build_mesh(Parallel(stages=timeline.stages)), "bfloat16")
    recipes = [Recipe(part, shapes, state_shapes(part, shapes, pages)) for part in parts]
    programs = Programs(recipes, (), lambda report: None)
    program = Program(Family.DECODE, Variant.LEAN, shapes.decode_rows[-1])
    watched = [Watched(compile_step(one, program), ended) for one, ended in zip(recipes, timeline.ended, strict=True)]
    programs.adopt(program, tuple(watched))  # pyright: ignore[reportArgumentType]  called alike
    leaves = assemble_weights(joined(parts), DummyCheckpoint(hugging_face_shapes(spec), 0), lambda done, total: None)
    return JaxRunner(programs, open_stages(recipes, leaves), shapes, hooks), watched


def settings_for(stages: int, shapes: Shapes, ahead: int) -> Settings:
    """As a launch file with so many stages resolves; ``ahead`` is 1 unless ``scheduler.overlap`` is off."""
    depth, max_inflight = in_flight("pp" if stages > 1 else "overlap", stages, ahead)
    return Settings(
        context_length=CONTEXT,
        num_pages=shapes.max_rows * shapes.pages_per_row,
        max_rows=shapes.max_rows,
        depth=depth,
        max_inflight=max_inflight,
        micro_batches=stages,
        eos_ids=(),
    )


def script(rows: int, tokens: int) -> dict[int, list[tuple[int, Command]]]:
    """Every row decodes from the first step on, and all end together."""
    params = SamplingParams(max_new_tokens=tokens, temperature=0.0, ignore_eos=True, seed=1)
    requests = [Generate(rid=str(i), prompt=[i + 10], params=params, stream=True) for i in range(rows)]
    return {0: [(0, request) for request in requests], 10**6: [(0, Shutdown())]}


def measure(
    stages: int, spec: ModelSpec, rows: int, tokens: int, ahead: int, seconds: float | None
) -> dict[str, object]:
    """One run, on fake devices or on stages that take ``seconds`` each."""
    shapes = make_shapes(rows, 256, 16, CONTEXT, VOCAB, micro_batches=stages)
    timeline, watch, host = Timeline(stages), Stopwatch(time.perf_counter_ns), HostTime()
    closing: list[Callable[[], None]] = []
    if seconds is None:
        note = LaunchHooks((watch.launching, lambda step: timeline.launched.append(time.perf_counter())))
        runner, watched = on_devices(spec, shapes, timeline, note)
        closing = [one.close for one in watched]
    else:
        runner = PassingTime(shapes, timeline, seconds, watch)
    settings = settings_for(stages, shapes, ahead)
    engine = assemble(ScriptedPort(script(rows, tokens)), runner, settings, (watch,))
    run(TimedEngine(engine, watch, time.time, (host,)), settings.depth)
    for close in closing:
        close()
    skip = 4 * stages
    step_s = timeline.step_s(skip)
    return {
        "stages": stages,
        "devices": "fake" if seconds is None else f"pass {seconds * 1e3:.1f} ms",
        "rows_a_step": -(-rows // stages),
        "step_ms": round(step_s * 1e3, 3),
        "tokens_a_second": round(-(-rows // stages) / step_s),
        "wait": [round(share, 3) for share in timeline.waits(skip)],
        "host_ms": round(statistics.median(host.host_s[skip:-skip]) * 1e3, 3),
        "launch_ms": round(statistics.median(host.launch_s[skip:-skip]) * 1e3, 3),
    }


def main(argv: list[str]) -> int:
    """Measure all; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--ahead", type=int, choices=(0, 1), default=1, help="as scheduler.overlap")
    arguments = parser.parse_args(argv)
    jax.config.update("jax_num_cpu_devices", max(STAGES))
    spec = spec_of(arguments.layers, arguments.hidden)
    found: list[dict[str, object]] = []
    alone_s = 0.0
    for stages in STAGES:
        for fake in (True, False):
            line = measure(
                stages, spec, arguments.rows, arguments.tokens, arguments.ahead, None if fake else alone_s / stages
            )
            if fake and stages == 1:
                alone_s = float(str(line["step_ms"])) / 1e3
            found.append(line)
            print(", ".join(f"{key} {value}" for key, value in line.items()), flush=True)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    np.seterr(all="raise")
    sys.exit(main(sys.argv[1:]))
