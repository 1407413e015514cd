"""``radjax bench steps``: the time of every compiled step beside what the device's bandwidth and arithmetic allow."""

import argparse
import statistics
import time
from pathlib import Path

from msgspec import structs

from configs.env import process_environment
from configs.errors import ConfigError
from configs.load import Loaded, load
from configs.schema import Observe, Serving
from model.batch import Program
from model.interface import Family, StepInput
from model.limits import Limits, measure_limits
from model.programs import all_programs
from model.registry import facts
from model.rehearsal import synthetic
from model.runner import JaxRunner
from scheduler.main import Setup, make_runner, prepare
from scheduler.step_times import StepTable, StepTime, context_tokens, write_table
from sharding.mesh import hardware_facts


def main(argv: list[str]) -> int:
    """Measure, or only list, the programs of a launch file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="radjax bench steps", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--list", action="store_true", help="name the programs and stop")
    parser.add_argument(
        "--context", type=int, nargs="+", default=[256], help="tokens in front of each row (default: 256)"
    )
    parser.add_argument("--repeat", type=int, default=10, help="measurements of each program (default: 10)")
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
    for context in sorted(set(arguments.context)):
        print(f"behind {context} tokens:")
        for program in all_programs(setup.shapes):
            step = synthetic(program, setup.shapes, context, setup.resolved.num_pages, setup.resolved.window_pages)
            seconds = measure(runner, step, arguments.repeat)
            times.append(timed(program, step, seconds))
            print(report(program, seconds, setup, limits), flush=True)
    if arguments.out is not None:
        write_table(arguments.out, table(loaded, setup, tuple(times)))
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


def timed(program: Program, step: StepInput, seconds: float) -> StepTime:
    """A measurement as the table keeps it."""
    return StepTime(
        family=program.family,
        variant=program.variant,
        size=program.size,
        context_tokens=context_tokens(step),
        seconds=seconds,
    )


def table(loaded: Loaded, setup: Setup, times: tuple[StepTime, ...]) -> StepTable:
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
    )


def report(program: Program, seconds: float, setup: Setup, limits: Limits) -> str:
    """One line of the table; the share is that of the nearer limit in the measured time."""
    tokens = program.size
    layers = sum(leaf.size for name, leaf in setup.model.leaves.items() if name.startswith("blocks"))
    head = setup.model.leaves["head"].size
    rows = program.size if program.family is Family.SCORE else setup.shapes.rows(program.family, program.size)
    embedding = setup.model.leaves["embedding"]
    bandwidth = (setup.model.weight_bytes - embedding.size * embedding.dtype.itemsize) / limits.bytes_per_s
    arithmetic = 2 * (layers * tokens + head * rows) / limits.flops_per_s
    share = max(bandwidth, arithmetic) / seconds
    times = f"{seconds * 1e3:9.2f}{tokens / seconds:10.0f}{bandwidth * 1e3:12.2f}{arithmetic * 1e3:13.2f}"
    return f"{program!s:20}{times}{share:8.0%}"


def measure(runner: JaxRunner, step: StepInput, repeat: int) -> float:
    """Median seconds of a step, launched two deep as the overlapped loop does."""
    runner.launch(step).result()
    times: list[float] = []
    for _ in range(repeat):
        began = time.perf_counter()
        first, second = runner.launch(step), runner.launch(step)
        first.result()
        second.result()
        times.append((time.perf_counter() - began) / 2)
    return statistics.median(times)
