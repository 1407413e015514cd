"""``radjax plan [TRACE]``: the server's own scheduler on a fake clock, with the step times of a machine.

TRACE is a recording of a server, a file of JSON lines (docs/plan.md), or left out for a synthetic workload. A recording
without --steps is run again exactly, its commands in their recorded turns. With --concurrency so many clients ask what
TRACE holds, each again when it is answered, whenever that was recorded: for a load that waited for its answers.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from configs.errors import ConfigError
from configs.load import override
from configs.resolve import resolve
from model.interface import Shapes
from model.ladders import shapes_of
from scheduler.assembly import Settings, settings_from
from scheduler.commands import Generate
from scheduler.figures import Figures, lines
from scheduler.replay import ReplayError, arrivals, open_recording, play
from scheduler.simulate import ClosedLoop, Source, Timeline, simulate
from scheduler.step_times import StepClock, StepTable, read_table
from scheduler.trace import Arrival, Synthetic, TraceError, read_trace


class Report(Struct, frozen=True):
    """What is printed."""

    settings: Settings
    figures: Figures
    plans_compared: int | None = None
    """Of a recording at its recorded turns: plans that were the server's, byte for byte."""


def main(argv: list[str]) -> int:
    """Simulate; returns the exit code."""
    arguments = _parser().parse_args(argv)
    trace: Path | None = arguments.trace
    try:
        report = _report(arguments, trace)
    except (TraceError, ReplayError, OSError) as error:
        print(f"radjax plan: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(msgspec.json.encode(report).decode())
        return 0
    print(
        "settings  " + ", ".join(f"{name}={value}" for name, value in msgspec.structs.asdict(report.settings).items())
    )
    print("\n".join(lines(report.figures)))
    if report.plans_compared is not None:
        print(f"{report.plans_compared} plans are the same as the server's")
    return 0


def launch(table: StepTable, overrides: list[str]) -> tuple[Shapes, Settings]:
    """What the engine of the table's launch file would be made of, with the overrides laid over it.

    Raises:
        ConfigError: as a start with them would.
    """
    config = override(table.config, overrides)
    resolved = resolve(config, table.name, table.hardware, table.model, table.weight_bytes)
    return shapes_of(resolved, table.model.vocab_size), settings_from(resolved, config, table.eos_ids)


def _report(arguments: argparse.Namespace, trace: Path | None) -> Report:
    began = time.perf_counter()
    asked = _asked(arguments)
    described = [name for name in asked if name != "concurrency"]
    if trace is not None and described:
        flag = described[0].replace("_", "-")
        raise ConfigError("describes a synthetic workload: leave it out, or leave out TRACE", key=f"--{flag}")
    recording = open_recording(trace) if trace is not None and is_recording(trace) else None
    if recording is not None and arguments.steps is None:
        if arguments.overrides:
            raise ConfigError("wants --steps: with other settings the recorded steps do not fit", where="--set")
        if asked:
            raise ConfigError("wants --steps: the recording knows when its requests came", key="--concurrency")
        replayed = play(recording)
        figures = replayed.meter.figures("recorded", time.perf_counter() - began)
        return Report(recording.header.settings, figures, replayed.compared)
    if arguments.steps is None:
        raise ConfigError(
            "is missing: how long does a step take?",
            key="--steps",
            suggestion="write the table with: radjax bench steps CONFIG --out FILE",
        )
    table = read_table(arguments.steps)
    if recording is not None and not arguments.overrides:
        shapes, settings = recording.header.shapes, recording.header.settings
    else:
        shapes, settings = launch(table, arguments.overrides)
    if settings.micro_batches > 1:
        raise ConfigError(
            "the simulated device computes one step at a time, and stages compute several",
            key="parallel.stages",
            value=settings.micro_batches,
            suggestion="set it to 1",
        )
    steps = StepClock(table.times, shapes.page_size)
    steps.check(shapes)
    if trace is None:
        source = _synthetic(asked, shapes)
    else:
        requests = read_trace(trace, shapes.vocab_size) if recording is None else arrivals(recording)
        source = _by_clients(requests, asked) if asked else Timeline(requests)
    meter = simulate(source, shapes, settings, steps, table.copies)
    return Report(settings, meter.figures("model", time.perf_counter() - began))


def is_recording(path: Path) -> bool:
    """Whether a file begins like a recording: JSON has no zero bytes, and the length of a header has."""
    with path.open("rb") as file:
        return b"\0" in file.read(4)


def _by_clients(requests: Iterable[Arrival], asked: Mapping[str, object]) -> Source:
    """The requests of a trace in their order, as so many clients ask them; what else a recording holds is left out."""
    only = (one for one in requests if isinstance(one.command, Generate))
    return ClosedLoop(only, _workload(asked).concurrency)


def _workload(asked: Mapping[str, object]) -> Synthetic:
    try:
        return msgspec.convert(asked, Synthetic)
    except msgspec.ValidationError as error:
        raise ConfigError(f"a synthetic workload: {error}") from error


def _synthetic(asked: Mapping[str, object], shapes: Shapes) -> Source:
    if "rate" in asked and "concurrency" in asked:
        raise ConfigError(
            "means nothing beside --rate: requests then come whether others are answered or not", key="--concurrency"
        )
    workload = _workload(asked)
    requests = workload.arrivals(shapes.vocab_size)
    return ClosedLoop(requests, workload.concurrency) if workload.rate is None else Timeline(requests)


def _asked(arguments: argparse.Namespace) -> dict[str, object]:
    """What the command line says of a synthetic workload."""
    asked: dict[str, object] = {
        name: value for name, value in vars(arguments).items() if name in Synthetic.__struct_fields__
    }
    for name in ("prompt_len", "output_len"):
        if name in asked:
            ends: list[int] = vars(arguments)[name]
            asked[name] = sorted(ends * 2 if len(ends) == 1 else ends)
    return asked


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="radjax plan", description=__doc__)
    parser.add_argument("trace", nargs="?", type=Path, metavar="TRACE")
    parser.add_argument("--steps", type=Path, metavar="FILE", help="what 'radjax bench steps CONFIG --out FILE' wrote")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    drawn = parser.add_argument_group("a synthetic workload, in place of TRACE")
    for name, many, words in (
        ("requests", None, "how many (1000)"),
        ("rate", None, "a second, at random times; without it, see --concurrency"),
        ("concurrency", None, "clients that ask again when they are answered (32); with TRACE, they ask its requests"),
        ("prompt-len", "+", "tokens of each one's own, or the least and the most (128)"),
        ("output-len", "+", "tokens, or the least and the most (64)"),
        ("prefixes", None, "shared beginnings, taken in turn (0)"),
        ("prefix-len", None, "tokens of a shared beginning (0)"),
        ("seed", None, "of lengths, times and tokens (0)"),
    ):
        kind = float if name == "rate" else int
        drawn.add_argument(f"--{name}", type=kind, nargs=many, metavar="N", default=argparse.SUPPRESS, help=words)
    return parser
