"""Host time of one step: plan, build and commit with many running requests and a runner that does nothing.

Run as ``python -m tests.benchmarks.scheduler_step``; prints JSON. Times are microseconds.
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np

from model.interface import Shapes, StepInput, StepOutput
from scheduler.assembly import Settings, assemble
from scheduler.commands import Generate, SamplingParams
from scheduler.engine import Engine
from tests.fakes import ScriptedPort

PROMPT = 64
STEPS = 400


@dataclass
class NullHandle:
    """Says the same token to every row."""

    output: StepOutput

    def ready(self) -> bool:
        return True

    def result(self) -> StepOutput:
        return self.output


@dataclass
class NullRunner:
    """Computes nothing."""

    shapes: Shapes

    def compiled_late(self) -> int:
        return 0

    def launch(self, step: StepInput) -> NullHandle:
        return NullHandle(StepOutput(np.full(len(step.slots), 3, np.int32)))


def started(running: int) -> tuple[Engine, ScriptedPort]:
    """An engine whose requests have all begun to decode."""
    shapes = Shapes((2, 8, 32, 128, 512, 1024), (256, 1024, 2048), 64, 1024, 4, 16, 16, 128, 50_000)
    settings = Settings(
        context_length=2048, num_pages=running * 128, max_rows=1024, depth=1, max_inflight=1, eos_ids=(1,)
    )
    params = SamplingParams(max_new_tokens=STEPS + 1_000, temperature=0.0, seed=1)
    rng = np.random.default_rng(0)
    commands = [
        (0, Generate(rid=str(index), prompt=rng.integers(5, 40_000, PROMPT).tolist(), params=params))
        for index in range(running)
    ]
    port = ScriptedPort({0: commands})
    engine = assemble(port, NullRunner(shapes), settings, ())
    engine.receive()
    while True:
        plan = engine.plan()
        step = engine.launch(plan)
        if step is not None:
            engine.commit(step)
        if len(plan.decode) == running:
            return engine, port
        engine.receive()


def measure(running: int) -> dict[str, float | int]:
    """Median times of each verb over many steps."""
    engine, port = started(running)
    times: dict[str, list[float]] = {"receive": [], "plan": [], "launch": [], "commit": [], "emit": []}
    for _ in range(STEPS):
        marks = [time.perf_counter()]
        engine.receive()
        marks.append(time.perf_counter())
        plan = engine.plan()
        marks.append(time.perf_counter())
        step = engine.launch(plan)
        marks.append(time.perf_counter())
        assert step is not None, "every step has work"
        answers = engine.commit(step)
        marks.append(time.perf_counter())
        engine.emit(answers)
        marks.append(time.perf_counter())
        port.answers.clear()
        for name, start, end in zip(times, marks, marks[1:], strict=False):
            times[name].append((end - start) * 1e6)
    medians = {f"{name}_us": round(statistics.median(values), 1) for name, values in times.items()}
    whole = [sum(parts) for parts in zip(times["plan"], times["launch"], times["commit"], strict=True)]
    whole.sort()
    return {
        "running": running,
        **medians,
        "plan_build_commit_us": round(statistics.median(whole), 1),
        "p95_us": round(whole[len(whole) * 95 // 100], 1),
    }


def main() -> None:
    """Print one JSON object a line."""
    for running in [int(value) for value in sys.argv[1:]] or [32, 256, 1024]:
        print(json.dumps(measure(running)), flush=True)


if __name__ == "__main__":
    main()
