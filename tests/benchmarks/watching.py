"""What all that watches an engine costs its thread: 32 rows decode on a runner that computes nothing.

Run as ``python -m tests.benchmarks.watching [PART …]``; prints JSON. One engine is alone; each of the others has one
part of what can be switched on, ``always`` nothing of it, and ``all`` everything but a device profile. They take turns
by a hundred steps, 10,000 each, and every block is compared with the lonely engine's block beside it: ``added_us`` has
the differences of their medians, ``added_mean_us`` those of their means, which also have what is not due every step,
and ``beside_always_us`` compares with the engine of ``always``. ``share_at_1000_steps_s`` is the live page's share of
the engine's time at a thousand steps a second, with two frames a second. What comes out goes to a process that reads
it, as it would to a collector.
"""

import contextlib
import gc
import json
import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import zmq
from msgspec import structs

from configs.schema import Observe, Resolved
from model.interface import Shapes, StepInput
from model.profile import DeviceProfiler
from model.runner import LaunchHooks
from scheduler.assembly import Settings, assemble
from scheduler.commands import Generate, Look, SamplingParams
from scheduler.instruments import instruments
from scheduler.loop import Verbs
from scheduler.observe import Observer
from scheduler.port import Answer
from scheduler.recording import open_recorder
from scheduler.reporter import Reporter
from scheduler.start import Endpoints
from scheduler.step_log import StepLog
from scheduler.watchers import open_watchers
from scheduler.zmq_channel import ZmqChannel
from tests.benchmarks.scheduler_step import NullHandle, NullRunner
from tests.fakes import ScriptedPort

ROWS: Final = 32
STEPS: Final = 10_000
BLOCK: Final = 100
CONTEXT: Final = 16_384
SHAPES: Final = Shapes((2, 8, ROWS), (256, 2048), 64, ROWS, 4, 16, 16, CONTEXT // 16, 50_000)
SETTINGS: Final = Settings(
    context_length=CONTEXT, num_pages=ROWS * SHAPES.pages_per_row, max_rows=ROWS, depth=0, max_inflight=0, eos_ids=(1,)
)
RESOLVED: Final = Resolved(
    served_name="bench",
    dtype="float32",
    attention="xla",
    context_length=CONTEXT,
    page_size=SHAPES.page_size,
    num_pages=SETTINGS.num_pages,
    cache_family="radix",
    max_running_requests=ROWS,
    chunk_tokens=2048,
    loop="normal",
    depth=0,
    max_inflight=0,
    micro_batches=1,
    cache_dir="",
    choices=(),
)
LOOK_EVERY: Final = 500
"""Steps from one frame of the live page to the next: half a second at a thousand steps a second."""
TREE_EVERY: Final = 4
"""Frames from one with the prefix tree to the next."""
PARTS: Final = ("always", "records", "metrics", "recording", "kv_events", "kv_metrics", "lifecycle", "page", "all")


def observe_of(part: str, folder: Path) -> Observe:
    """The launch file's section."""
    quiet = Observe(metrics=part in ("metrics", "all"), decode_log_interval=40)
    sections = {
        "records": {"step_records": True, "step_records_file": str(folder / f"{part}.jsonl"), "record_step_time": True},
        "recording": {"record": str(folder / f"{part}.rec"), "record_limit_bytes": 2**36},
        "kv_events": {"kv_events_endpoint": f"ipc://{folder}/{part}-events", "kv_events_replay_endpoint": None},
        "kv_metrics": {"kv_metrics_endpoint": f"ipc://{folder}/kv", "metrics": True},
        "lifecycle": {"request_lifecycle": True},
    }
    for name, section in sections.items():
        if part in (name, "all"):
            quiet = structs.replace(quiet, **section)
    return quiet


class HookedRunner(NullRunner):
    """Tells of launches, as the real runner does."""

    hooks: LaunchHooks

    def launch(self, step: StepInput) -> NullHandle:
        for tell in self.hooks.before:
            tell(step)
        handle = super().launch(step)
        for tell in self.hooks.after:
            tell(handle)
        return handle


@dataclass
class WirePort(ScriptedPort):
    """Encodes answers, as the wire does."""

    def send(self, answers: list[Answer]) -> None:
        for _, answer in answers:
            msgspec.msgpack.encode(answer)


class Bench:
    """One engine whose rows all decode.

    Args:
        part: what watches it; None: nothing at all.
        folder: for what it writes.
        channel: to the collector.
        undo: closes what it opens.
    """

    def __init__(self, part: str | None, folder: Path, channel: ZmqChannel, undo: contextlib.ExitStack) -> None:
        self.port = WirePort({0: prompts()}, clock=time.monotonic_ns)
        self.medians: list[float] = []
        self.means: list[float] = []
        self.looks: list[float] = []
        self._page = part in ("page", "all")
        self._looked_ns = self._turns = 0
        self.engine: Verbs
        if part is None:
            self.engine = assemble(self.port, NullRunner(SHAPES), SETTINGS, ())
        else:
            self.engine = watched(part, self.port, folder, channel, undo)
        while self._turn() < ROWS:
            pass

    def block(self) -> None:
        """A hundred steps. The turns that make a frame for the page are timed apart, and in the mean."""
        times = [self._timed() for _ in range(BLOCK)]
        self.medians.append(statistics.median(times))
        self.means.append(statistics.fmean(times))

    def _timed(self) -> float:
        self._turns += 1
        look = self._page and self._turns % LOOK_EVERY == 0
        if look:
            tree = self._turns // LOOK_EVERY % TREE_EVERY == 0
            self.port.script[self.port.turn] = [(0, Look(call="page", since_ns=self._looked_ns, tree=tree))]
            self._looked_ns = time.monotonic_ns()
        began = time.perf_counter()
        self._turn()
        took = (time.perf_counter() - began) * 1e6
        if look:
            self.looks.append(took)
        return took

    def _turn(self) -> int:
        """One turn of the loop; gives the rows that decoded."""
        self.engine.emit(self.engine.receive())
        plan = self.engine.plan()
        step = self.engine.launch(plan)
        assert step is not None, "every turn has work"
        self.engine.emit(self.engine.commit(step))
        return len(plan.decode)


def prompts() -> list[tuple[int, Generate]]:
    """Requests that decode for the whole of the benchmark."""
    params = SamplingParams(max_new_tokens=CONTEXT - 100, temperature=0.0, seed=1, ignore_eos=True)
    rng = np.random.default_rng(0)
    return [(0, Generate(rid=str(n), prompt=rng.integers(5, 40_000, 64).tolist(), params=params)) for n in range(ROWS)]


def watched(part: str, port: ScriptedPort, folder: Path, channel: ZmqChannel, undo: contextlib.ExitStack) -> Verbs:
    """An engine put together as ``scheduler.main`` does it."""
    observe, profiler = observe_of(part, folder), DeviceProfiler(None)
    reporter = Reporter(channel, 0)
    around = instruments(observe, profiler, reporter)
    undo.callback(around.close)
    watchers = open_watchers(observe, SETTINGS.parallel, RESOLVED, 0)
    undo.callback(watchers.close)
    recorder = open_recorder(observe, SHAPES, SETTINGS)
    runner = HookedRunner(SHAPES)
    runner.hooks = LaunchHooks((profiler.launching, around.stopwatch.launching), (profiler.launched,))
    watching: list[Observer] = [*around.observers, StepLog(observe.decode_log_interval, SHAPES.mixed_tokens[-1])]
    watching += watchers.observers
    if observe.metrics:
        watching.append(reporter)
    if recorder is not None:
        watching.append(recorder)
        undo.callback(recorder.close)
    clock = time.monotonic_ns if part in ("page", "all") else None
    engine = assemble(port, runner, SETTINGS, watching, listener=watchers.listener, clock=clock)
    return around.around(engine)


def drain(folder: str) -> None:
    """Read what the engines send, for ever."""
    context: zmq.Context[zmq.SyncSocket] = zmq.Context()
    poller = zmq.Poller()
    for kind, address in (
        (zmq.PULL, Endpoints(folder).stats),
        (zmq.PULL, f"ipc://{folder}/kv"),
        (zmq.SUB, f"ipc://{folder}/kv_events-events"),
        (zmq.SUB, f"ipc://{folder}/all-events"),
    ):
        socket = context.socket(kind)
        if kind == zmq.SUB:
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            socket.connect(address)
        else:
            socket.bind(address)
        poller.register(socket, zmq.POLLIN)
    while True:
        for socket, _ in poller.poll():
            with contextlib.suppress(zmq.Again):
                while True:
                    socket.recv_multipart(zmq.NOBLOCK)


@contextlib.contextmanager
def drained(folder: Path) -> Iterator[None]:
    """With a process that reads."""
    process = multiprocessing.get_context("spawn").Process(target=drain, args=(str(folder),), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def quantiles(values: list[float]) -> dict[str, float]:
    """Median and spread."""
    ordered = sorted(values)
    at = {name: ordered[int(len(ordered) * share)] for name, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9))}
    return {name: round(value, 1) for name, value in at.items()}


def report(bench: Bench, alone: Bench, always: Bench) -> dict[str, object]:
    """What a part adds to a step, beside nothing at all and beside what is always there."""
    found: dict[str, object] = {
        "step_us": round(statistics.median(bench.medians), 1),
        "added_us": quantiles(difference(bench.medians, alone.medians)),
        "added_mean_us": quantiles(difference(bench.means, alone.means)),
        "beside_always_us": quantiles(difference(bench.medians, always.medians)),
    }
    if bench.looks:
        found["frame_us"] = round(statistics.median(bench.looks) - statistics.median(bench.medians), 1)
    return found


def difference(values: list[float], others: list[float]) -> list[float]:
    """Block by block."""
    return [value - other for value, other in zip(values, others, strict=True)]


def main() -> None:
    """Print one JSON object."""
    parts = [part for part in PARTS if part in (sys.argv[1:] or PARTS) or part == "always"]
    with tempfile.TemporaryDirectory() as name, drained(Path(name)), contextlib.ExitStack() as undo:
        folder = Path(name)
        logging.basicConfig(filename=folder / "log", level=logging.INFO)
        context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        channel = ZmqChannel(context, Endpoints(name), 0)
        undo.callback(context.term)
        undo.callback(channel.close)
        alone = Bench(None, folder, channel, undo)
        benches = {part: Bench(part, folder, channel, undo) for part in parts}
        gc.collect()
        gc.freeze()  # as a server does when it is told to; the collector would look at all engines for each of them
        for _ in range(STEPS // BLOCK):
            for bench in (alone, *benches.values()):
                bench.block()
        found = {part: report(bench, alone, benches["always"]) for part, bench in benches.items()}
        if (page := benches.get("page")) is not None:
            ring_us = statistics.median(difference(page.medians, benches["always"].medians))
            frame_us = statistics.median(page.looks) - statistics.median(page.medians)
            found["page"]["share_at_1000_steps_s"] = round((1000 * ring_us + 2 * frame_us) / 1e6, 4)
        print(
            json.dumps({"rows": ROWS, "steps": STEPS, "alone_us": round(statistics.median(alone.medians), 1)} | found)
        )


if __name__ == "__main__":
    main()
