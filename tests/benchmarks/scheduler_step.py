"""Host time of one step: plan, build and commit with many running requests and a runner that does nothing.

Run as ``python -m tests.benchmarks.scheduler_step [running …]``; prints JSON. Times are microseconds. With
``queue [order …]`` instead: planning alone, 1,024 running and 10,000 waiting, for every order and admission, with slots
free and without, with priorities and without, on a pool that has no pages for the next request; and what planning
leaves allocated. ``cpu_us`` is the mean time of the processor, which other work on the machine puts off less. The last
line is the largest median.
"""

import json
import statistics
import sys
import time
import tracemalloc
from dataclasses import dataclass
from itertools import product
from typing import get_args

import numpy as np

from configs.schema import OrderName
from model.interface import Shapes, StepInput, StepOutput
from scheduler.assembly import Settings, assemble
from scheduler.commands import Generate, SamplingParams
from scheduler.engine import Engine
from scheduler.priority import Direction
from scheduler.request import Request
from tests.fakes import ScriptedPort

PROMPT = 64
STEPS = 400
RUNNING = 1024
WAITING = 10_000
PLANS = 200
CROWDS = ((0, 0), (0, 64), (16, 64))
"""How often a request may be passed over, and how many slots are free."""
LEVELS = 16
"""Of priorities among the waiting, none of which may displace what runs."""


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


def crowded(order: OrderName, max_passed_over: int, slots: int, priority: Direction) -> Engine:
    """1,024 requests decode, 10,000 wait, and the pool has no pages for another; ``slots`` more might run."""
    rows = RUNNING + slots
    shapes = Shapes((2, 8, 32, 128, 512, rows), (256, 1024, 65_536), 64, rows, 64, 16, 16, 4096, 50_000)
    settings = Settings(
        context_length=65_536,
        num_pages=RUNNING * 8,
        max_rows=rows,
        depth=1,
        max_inflight=1,
        eos_ids=(1,),
        order=order,
        max_passed_over=max_passed_over,
        max_prefill_tokens=65_536,
        max_queued=WAITING,
        conservativeness=0.01,
        priority=priority,
        preemption_threshold=LEVELS,
    )
    rng = np.random.default_rng(0)
    port = ScriptedPort({0: [(0, _ask(rng, index, PROMPT, 300, 0)) for index in range(RUNNING - 1)]})
    engine = assemble(port, NullRunner(shapes), settings, ())
    decode = _until_decoding(engine, RUNNING - 1)
    pages = sum(len(request.lease.pages[0]) for request in decode if request.lease is not None)
    filler = (settings.num_pages - pages - RUNNING // 4) * shapes.page_size
    port.script[port.turn] = [(0, _ask(rng, RUNNING - 1, filler, 300, 0))]
    _until_decoding(engine, RUNNING)
    port.script[port.turn] = [
        (0, _ask(rng, RUNNING + index, 1500, int(rng.integers(3000, 4000)), index * 7 % LEVELS))
        for index in range(WAITING)
    ]
    engine.receive()
    return engine


def _until_decoding(engine: Engine, count: int) -> tuple[Request, ...]:
    while True:
        engine.receive()
        plan = engine.plan()
        assert not plan.retract, "the pool is too small for this benchmark"
        if len(plan.decode) == count:
            return plan.decode
        step = engine.launch(plan)
        if step is not None:
            engine.commit(step)


def _ask(rng: np.random.Generator, index: int, length: int, max_new_tokens: int, priority: int) -> Generate:
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0, seed=1, ignore_eos=True)
    prompt = rng.integers(5, 40_000, length).tolist()
    return Generate(rid=str(index), prompt=prompt, params=params, routing_key=f"k{index % 50}", priority=priority)


def measure_queue(
    order: OrderName, max_passed_over: int, slots: int, priority: Direction
) -> dict[str, float | int | str]:
    """Median and 95th percentile of planning time."""
    engine = crowded(order, max_passed_over, slots, priority)
    times: list[float] = []
    tracemalloc.start()
    engine.plan()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(20):
        engine.plan()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    began = time.process_time()
    for _ in range(PLANS):
        start = time.perf_counter()
        plan = engine.plan()
        times.append((time.perf_counter() - start) * 1e6)
    cpu_us = (time.process_time() - began) * 1e6 / PLANS
    assert not plan.admit, "the pool has no room"
    times.sort()
    return {
        "order": order,
        "max_passed_over": max_passed_over,
        "free_slots": slots,
        "priority": priority,
        "running": RUNNING,
        "waiting": WAITING,
        "tried": len(plan.blocked),
        "plan_us": round(statistics.median(times), 1),
        "p95_us": round(times[len(times) * 95 // 100], 1),
        "cpu_us": round(cpu_us, 1),
        "grown_bytes": grown,
    }


def main() -> None:
    """Print one JSON object a line."""
    if sys.argv[1:2] == ["queue"]:
        medians: list[float] = []
        orders = [name for name in get_args(OrderName) if name in (sys.argv[2:] or get_args(OrderName))]
        for order, priority, (max_passed_over, slots) in product(orders, ("off", "high_first"), CROWDS):
            figures = measure_queue(order, max_passed_over, slots, priority)
            medians.append(float(figures["plan_us"]))
            print(json.dumps(figures), flush=True)
        print(json.dumps({"plan_us_of_the_slowest": max(medians)}))
        return
    for running in [int(value) for value in sys.argv[1:]] or [32, 256, 1024]:
        print(json.dumps(measure(running)), flush=True)


if __name__ == "__main__":
    main()
