"""How long each compiled step takes on a machine: what ``radjax bench steps --out`` writes and ``radjax plan`` reads.

The file also says which launch and which machine it speaks of, so that other settings can be worked out from it without
the machine, the model or jax.
"""

from bisect import bisect_right
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from configs.errors import ConfigError
from configs.schema import EngineConfig, HardwareFacts, ModelFacts
from model.interface import Family, Shapes, StepInput, Variant

MAX_FILE_BYTES: Final = 16 * 2**20
MAX_ENTRIES: Final = 10_000

Count = Annotated[int, Meta(ge=0, le=2**62)]
ProgramName = tuple[Family, Variant, int]
"""Family, variant and size of a compiled step."""


class StepTime(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One measurement of one program."""

    family: Family
    variant: Variant
    size: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    context_tokens: Count
    """Tokens that the step's rows attend to, summed over rows (``context_tokens`` below)."""
    seconds: Annotated[float, Meta(gt=0, le=3600)]


class StepTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file."""

    version: Literal[1] = 1
    name: str
    """The launch file's."""
    device: str
    config: EngineConfig
    """Without keys and addresses; the size of the KV pool is the one that was measured with."""
    hardware: HardwareFacts
    model: ModelFacts
    weight_bytes: Count
    eos_ids: Annotated[tuple[int, ...], Meta(max_length=64)]
    times: Annotated[tuple[StepTime, ...], Meta(min_length=1, max_length=MAX_ENTRIES)]


def context_tokens(step: StepInput) -> int:
    """Tokens that the rows of a step attend to, their own included."""
    return int(step.starts.sum()) + int(step.lengths.sum())


def read_table(path: Path) -> StepTable:
    """The table in a file.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", key="--steps", value=str(path)) from error
    try:
        if len(data) > MAX_FILE_BYTES:
            raise msgspec.ValidationError(f"longer than {MAX_FILE_BYTES} bytes")
        return msgspec.json.decode(data, type=StepTable)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"is no table of step times: {error}",
            key="--steps",
            value=str(path),
            suggestion="write one: radjax bench steps CONFIG --out FILE",
        ) from error


def write_table(path: Path, table: StepTable) -> None:
    """Write a table as JSON that people can read."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")


class StepClock:
    """Durations of steps, from measurements.

    A program measured at several contexts is interpolated between them by the tokens that its rows attend to, and
    carried on beyond the longest by the last slope; below the shortest it takes that one's time.
    """

    def __init__(self, times: tuple[StepTime, ...]) -> None:
        self._points: dict[ProgramName, list[tuple[int, int]]] = {}
        """(context tokens, nanoseconds), ascending."""
        for time in sorted(times, key=lambda time: time.context_tokens):
            points = self._points.setdefault((time.family, time.variant, time.size), [])
            nanoseconds = max(1, round(time.seconds * 1e9))
            if points and points[-1][0] == time.context_tokens:
                points.pop()  # measured twice: the later entry counts
            points.append((time.context_tokens, nanoseconds))

    def took_ns(self, step: StepInput) -> int:
        """Nanoseconds of a step.

        Raises:
            ConfigError: its program was not measured.
        """
        program = (step.family, step.variant, step.size)
        points = self._points.get(program, [])
        return points[0][1] if len(points) == 1 else self.duration_ns(program, context_tokens(step))

    def duration_ns(self, program: ProgramName, tokens: int) -> int:
        """Nanoseconds of one step whose rows attend to ``tokens`` tokens in all.

        Raises:
            ConfigError: the program was not measured.
        """
        points = self._points.get(program)
        if points is None:
            family, variant, size = program
            raise ConfigError(
                f"the table has no time of the program {family}/{variant}/{size}",
                key="--steps",
                suggestion="measure with the same settings: radjax bench steps CONFIG --set … --out FILE",
            )
        at = bisect_right(points, (tokens, 0))
        if at == 0 or len(points) == 1:
            return points[0][1]
        (left, early), (right, late) = points[at - 1 : at + 1] if at < len(points) else points[-2:]
        return max(1, early + (late - early) * (tokens - left) // (right - left)) if late > early else max(early, late)

    def check(self, shapes: Shapes) -> None:
        """See to it that the programs without which nothing runs are there.

        Raises:
            ConfigError: one was not measured.
        """
        for family, sizes in ((Family.DECODE, shapes.decode_rows), (Family.MIXED, shapes.mixed_tokens)):
            for size in sizes:
                self.duration_ns((family, Variant.LEAN, size), 0)
