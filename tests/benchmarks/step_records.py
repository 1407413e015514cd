"""What step records and step times cost the engine's thread: 32 rows decode on a runner that computes nothing.

Run as ``python -m tests.benchmarks.step_records``; prints JSON. Two engines take turns by a hundred steps, one with
records and one without; the figures are medians of 10,000 steps each, in microseconds.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from model.interface import Shapes, StepInput
from scheduler.assembly import Settings, assemble
from scheduler.commands import Generate, SamplingParams
from scheduler.loop import Verbs
from scheduler.step_records import RecordFile, StepRecords
from scheduler.step_time_dict import StepTimeDict
from scheduler.stopwatch import Stopwatch, TimedEngine
from tests.benchmarks.scheduler_step import NullHandle, NullRunner
from tests.fakes import ScriptedPort

ROWS = 32
STEPS = 10_000
BLOCK = 100
CONTEXT = 16_384
SHAPES = Shapes((2, 8, ROWS), (256, 2048), 64, ROWS, 4, 16, 16, CONTEXT // 16, 50_000)


class WatchedRunner(NullRunner):
    """Tells a stopwatch of launches, as the real runner does."""

    watch: Stopwatch

    def launch(self, step: StepInput) -> NullHandle:
        self.watch.launching(step)
        return super().launch(step)


class Bench:
    """One engine whose rows all decode."""

    def __init__(self, records: StepRecords | None) -> None:
        params = SamplingParams(max_new_tokens=STEPS + 2000, temperature=0.0, seed=1, ignore_eos=True)
        rng = np.random.default_rng(0)
        prompts = [rng.integers(5, 40_000, 64).tolist() for _ in range(ROWS)]
        self.port = ScriptedPort(
            {0: [(0, Generate(rid=str(n), prompt=p, params=params)) for n, p in enumerate(prompts)]}
        )
        settings = Settings(
            context_length=CONTEXT,
            num_pages=ROWS * SHAPES.pages_per_row,
            max_rows=ROWS,
            depth=0,
            max_inflight=0,
            eos_ids=(1,),
        )
        self.times: list[float] = []
        watch = Stopwatch(time.perf_counter_ns)
        runner = NullRunner(SHAPES)
        if records is not None:
            runner = WatchedRunner(SHAPES)
            runner.watch = watch
        # figures are made in both engines, as they are in every server
        engine = assemble(self.port, runner, settings, (Stopwatch(lambda: 0), *((watch,) if records else ())))
        self.engine: Verbs = engine
        if records is not None:
            self.engine = TimedEngine(engine, watch, time.time, (records, StepTimeDict()))
        while self.turn() < ROWS:
            pass
        self.times.clear()

    def turn(self) -> int:
        """One turn of the loop; gives the rows that decoded."""
        began = time.perf_counter()
        self.engine.emit(self.engine.receive())
        plan = self.engine.plan()
        step = self.engine.launch(plan)
        assert step is not None, "every turn has work"
        self.engine.emit(self.engine.commit(step))
        self.times.append((time.perf_counter() - began) * 1e6)
        self.port.answers.clear()
        return len(plan.decode)


def main() -> None:
    """Print one JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        records = StepRecords(RecordFile(Path(folder) / "steps.jsonl", 2**28, 2), console=False)
        off, on = Bench(None), Bench(records)
        for _ in range(STEPS // BLOCK):
            for bench in (off, on):
                for _ in range(BLOCK):
                    bench.turn()
        records.close()
    without, with_records = statistics.median(off.times), statistics.median(on.times)
    print(
        json.dumps(
            {
                "rows": ROWS,
                "steps": len(on.times),
                "off_us": round(without, 1),
                "on_us": round(with_records, 1),
                "added_us": round(with_records - without, 1),
                "dropped": records.dropped,
            }
        )
    )


if __name__ == "__main__":
    main()
