"""``radjax bench steps``: the time of every compiled step beside what the device's bandwidth and arithmetic allow."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import structs

from configs.env import process_environment
from configs.errors import ConfigError
from configs.load import Loaded, load
from configs.schema import Observe, Serving
from model.batch import Program
from model.interface import Family, HostPages, PageId, Shapes, StepInput, Variant
from model.limits import Limits, measure_limits
from model.programs import all_programs
from model.registry import facts
from model.rehearsal import synthetic
from model.runner import JaxRunner
from scheduler.main import Setup, make_runner, prepare
from scheduler.step_times import CopyTimes, Repeated, StepTable, StepTime, context_tokens, piece_pairs, write_table
from sharding.mesh import hardware_facts

PREFIX_ROWS: Final = 8
"""That stand behind one prefix."""
COPIED_PAGES: Final = 32
"""Of one measured copy to or from host memory."""
MIN_COPY_S: Final = 1e-9
"""For a device that copies while it computes."""


def main(argv: list[str]) -> int:
    """Measure, or only list, the programs of a launch file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="radjax bench steps", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--list", action="store_true", help="name the programs and stop")
    parser.add_argument(
        "--context", type=int, nargs="+", help="tokens in front of each row (default: 256; with --out 0, 256 and 1024)"
    )
    parser.add_argument("--repeat", type=int, default=10, help="measurements of each program (default: 10)")
    parser.add_argument("--lean", action="store_true", help="leave out the programs with penalties and the like")
    parser.add_argument("--out", type=Path, help="also write the times for 'radjax plan' to this file")
    arguments = parser.parse_args(argv)
    loaded = load(arguments.config, arguments.overrides, process_environment())
    if arguments.out is not None:
        refuse_unwritable(arguments.out)
    setup = prepare(loaded.config, loaded.name, lambda progress: None)
    if arguments.list:
        print("\n".join(map(str, all_programs(setup.shapes))))
        setup.programs.close()
        return 0
    runner = make_runner(loaded.config, setup, lambda progress: None)
    setup.programs.wait_all()
    limits = measure_limits(setup.resolved.dtype)
    print(f"{limits.device_kind}: {limits.bytes_per_s / 1e9:.1f} GB/s, {limits.flops_per_s / 1e9:.0f} GFLOP/s")
    print(f"{'program':20}{'ms':>9}{'tok/s':>10}{'weights ms':>12}{'products ms':>13}{'share':>8}")
    times: list[StepTime] = []
    contexts = sorted(set(arguments.context or ([256] if arguments.out is None else [0, 256, 1024])))
    programs = [one for one in all_programs(setup.shapes) if not (arguments.lean and one.variant is Variant.FULL)]
    for context in contexts:
        print(f"behind {context} tokens:")
        for program in programs:
            full = synthetic(program, setup.shapes, context, setup.resolved.num_pages, setup.resolved.window_pages)
            for mix, step in mixes(full, setup.shapes):
                times.append(timed(program, step, measure(runner, step, arguments.repeat), setup.shapes.page_size))
                print(f"{report(program, times[-1].seconds, setup, limits)}  {mix}", flush=True)
    copies = None
    if runner.host is not None:
        copies = measure_copies(runner, runner.host, setup, arguments.repeat)
        print(f"a page to host memory {copies.save_s * 1e3:.3f} ms, and back {copies.load_s * 1e3:.3f} ms")
    if arguments.out is not None:
        write_table(arguments.out, table(loaded, setup, tuple(times), copies))
    return 0


def refuse_unwritable(path: Path) -> None:
    """Find out before minutes of measuring that nothing can be written to ``path``.

    Raises:
        ConfigError: so it is.
    """
    try:
        path.open("ab").close()
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", key="--out", value=str(path)) from error


def mixes(step: StepInput, shapes: Shapes) -> Iterator[tuple[str, StepInput]]:
    """A full step, and others of its program, from which follows what pieces cost and what shared prefixes save."""
    yield "", step
    if step.family is Family.MIXED and shapes.max_pieces > 1:
        yield "pieces alone", pieces_alone(step, shapes)
    shared = int(step.starts[0]) // shapes.page_size
    if shared and step.num_decode >= PREFIX_ROWS:
        tables = step.page_tables[0].copy()
        for row in range(step.num_decode):
            tables[row, :shared] = tables[row // PREFIX_ROWS * PREFIX_ROWS, :shared]
        yield f"{PREFIX_ROWS} behind each prefix", replace(step, page_tables=(tables, *step.page_tables[1:]))


def pieces_alone(step: StepInput, shapes: Shapes) -> StepInput:
    """A mixed step of nothing but pieces, as many as there may be."""
    first, each = len(step.slots) - shapes.max_pieces, step.size // shapes.max_pieces // shapes.tile * shapes.tile
    context, pieces = int(step.starts[first]), np.arange(shapes.max_pieces, dtype=np.int32)
    starts, lengths, offsets, slots = np.zeros((4, len(step.slots)), np.int32)
    starts[first:], lengths[first:], offsets[first:] = context, each, pieces * each
    slots[first:] = shapes.max_rows - pieces % shapes.max_rows
    return replace(
        step,
        num_decode=0,
        num_tokens=int(lengths.sum()),
        slots=slots,
        starts=starts,
        lengths=lengths,
        offsets=offsets,
        sample=lengths > 0,
    )


def timed(program: Program, step: StepInput, seconds: float, page_size: int) -> StepTime:
    """A measurement as the table keeps it."""
    return StepTime(
        family=program.family,
        variant=program.variant,
        size=program.size,
        context_tokens=context_tokens(step),
        pairs=piece_pairs(step),
        repeated_tokens=Repeated().tokens(step, page_size),
        seconds=seconds,
    )


def table(loaded: Loaded, setup: Setup, times: tuple[StepTime, ...], copies: CopyTimes | None) -> StepTable:
    """The measurements with all from which other settings of this model on this machine can be resolved."""
    resolved, hardware = setup.resolved, hardware_facts()
    cache = structs.replace(loaded.config.cache, max_total_tokens=resolved.num_pages * resolved.page_size)
    return StepTable(
        name=loaded.name,
        device=hardware.device_kind,
        # the pool is pinned: memory that is free differs from start to start; no key and no address is written
        config=structs.replace(loaded.config, cache=cache, serving=Serving(), observe=Observe()),
        hardware=hardware,
        model=facts(setup.model.spec),
        weight_bytes=setup.model.weight_bytes,
        eos_ids=tuple(setup.model.spec.eos_token_ids),
        times=times,
        copies=copies,
    )


def report(program: Program, seconds: float, setup: Setup, limits: Limits) -> str:
    """One line of the table; the share is that of the nearer limit in the measured time."""
    tokens = program.size
    layers = sum(leaf.size for name, leaf in setup.model.leaves.items() if name.startswith("blocks"))
    embedding = setup.model.leaves["embedding"]
    head = setup.model.leaves.get("head", embedding)
    rows = program.size if program.family is Family.SCORE else setup.shapes.rows(program.family, program.size)
    looked_up = 0 if head is embedding else embedding.size * embedding.dtype.itemsize
    bandwidth = (setup.model.weight_bytes - looked_up) / limits.bytes_per_s
    arithmetic = 2 * (layers * tokens + head.size * rows) / limits.flops_per_s
    share = max(bandwidth, arithmetic) / seconds
    times = f"{seconds * 1e3:9.2f}{tokens / seconds:10.0f}{bandwidth * 1e3:12.2f}{arithmetic * 1e3:13.2f}"
    return f"{program!s:20}{times}{share:8.0%}"


def measure(runner: JaxRunner, step: StepInput, repeat: int) -> float:
    """Median seconds of a step, launched two deep as the overlapped loop does."""

    def twice() -> None:
        first, second = runner.launch(step), runner.launch(step)
        first.result()
        second.result()

    return timed_median(twice, repeat) / 2


def measure_copies(runner: JaxRunner, host: HostPages, setup: Setup, repeat: int) -> CopyTimes:
    """Median seconds by which copying a page puts a step off that is launched behind the copy."""
    smallest = all_programs(setup.shapes)[0]
    step = synthetic(smallest, setup.shapes, 0, setup.resolved.num_pages, setup.resolved.window_pages)
    pages = [
        PageId(page) for page in range(1, 1 + min(COPIED_PAGES, setup.resolved.num_pages, setup.resolved.host_pages))
    ]

    def save() -> None:
        handle = host.save(pages, pages)
        runner.launch(step).result()
        handle.result()

    def load() -> None:
        host.load(pages, pages)
        runner.launch(step).result()

    alone = timed_median(lambda: runner.launch(step).result(), repeat)
    save_s, load_s = (max(timed_median(copy, repeat) - alone, MIN_COPY_S) / len(pages) for copy in (save, load))
    return CopyTimes(save_s=save_s, load_s=load_s)


def timed_median(work: Callable[[], object], repeat: int) -> float:
    """Median seconds of ``work`` once it has been done before."""
    work()
    times: list[float] = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
