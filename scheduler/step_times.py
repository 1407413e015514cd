"""How long each compiled step takes on a machine: what ``radjax bench steps --out`` writes and ``radjax plan`` reads.

The file also says which launch and which machine it speaks of, so that other settings can be worked out from it without
the machine, the model or jax.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
import numpy as np
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
    pairs: Count = 0
    """Of prompt pieces: pairs of a token and one that it attends to (``piece_pairs`` below)."""
    repeated_tokens: Count = 0
    """Of the context tokens, those that another decode row attends to, too (``Repeated`` below)."""
    seconds: Annotated[float, Meta(gt=0, le=3600)]


class CopyTimes(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of a host tier: seconds of the device for one page among many."""

    save_s: Annotated[float, Meta(gt=0, le=3600)]
    load_s: Annotated[float, Meta(gt=0, le=3600)]


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
    copies: CopyTimes | None = None
    """None: measured without a host tier."""


def measured(copies: CopyTimes | None) -> CopyTimes:
    """The times of copies.

    Raises:
        ConfigError: the table was measured without a host tier.
    """
    if copies is None:
        raise ConfigError(
            "the table has no times of the host tier's copies",
            key="--steps",
            suggestion="measure with one: radjax bench steps CONFIG --set cache.host=true --out FILE",
        )
    return copies


def context_tokens(step: StepInput) -> int:
    """Tokens that the rows of a step attend to, their own included."""
    return int(step.starts.sum()) + int(step.lengths.sum())


def piece_pairs(step: StepInput) -> int:
    """Pairs of a token of a prompt piece and one that it attends to; no token attends to a later one."""
    lengths = step.lengths[step.num_decode :].astype(np.int64)
    return int((lengths * step.starts[step.num_decode :] + lengths * (lengths + 1) // 2).sum())


class Repeated:
    """Counts the tokens that more than one decode row of a step attends to, once for each row after the first."""

    def __init__(self) -> None:
        self._seen = np.zeros(0, np.bool_)
        """By page; grows to the size of the pool."""

    def tokens(self, step: StepInput, page_size: int) -> int:
        """Tokens of whole pages that were written before the step; rows that share any share their first."""
        count = step.num_decode
        if len(set(step.page_tables[0][:count, 0].tolist())) == count:
            return 0
        whole = step.starts[:count] // page_size
        width = int(whole.max(initial=0))
        pages = step.page_tables[0][:count, :width][np.arange(width) < whole[:, None]]
        if not pages.size:
            return 0
        if (highest := int(pages.max())) >= len(self._seen):
            self._seen = np.zeros(2 * highest + 1, np.bool_)
        self._seen[pages] = True
        distinct = np.count_nonzero(self._seen)
        self._seen[pages] = False
        return int(pages.size - distinct) * page_size


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


class Line(NamedTuple):
    """What a program takes, in nanoseconds."""

    base: float
    token: float
    """For each context token."""
    pair: float
    repeated: float
    """Off for each repeated token, at most what a token takes."""


class StepClock:
    """Durations of steps, from measurements.

    A program takes a time of its own, so much more for each token that its rows attend to and for each pair of its
    prompt pieces, and so much less for each repeated token; the four are fitted to what was measured.
    """

    def __init__(self, times: Iterable[StepTime], page_size: int) -> None:
        measured: dict[ProgramName, list[StepTime]] = {}
        for time in times:
            measured.setdefault((time.family, time.variant, time.size), []).append(time)
        self._lines = {program: _fitted(entries) for program, entries in measured.items()}
        self._page_size = page_size
        self._repeated = Repeated()

    def took_ns(self, step: StepInput) -> int:
        """Nanoseconds of a step.

        Raises:
            ConfigError: its program was not measured.
        """
        line = self._line((step.family, step.variant, step.size))
        took = line.base
        if line.token:
            took += line.token * context_tokens(step)
            if line.repeated:
                took -= line.repeated * self._repeated.tokens(step, self._page_size)
        if line.pair:
            took += line.pair * piece_pairs(step)
        return max(1, round(took))

    def _line(self, program: ProgramName) -> Line:
        line = self._lines.get(program)
        if line is None:
            family, variant, size = program
            raise ConfigError(
                f"the table has no time of the program {family}/{variant}/{size}",
                key="--steps",
                suggestion="measure with the same settings: radjax bench steps CONFIG --set … --out FILE",
            )
        return line

    def check(self, shapes: Shapes) -> None:
        """See to it that the programs without which nothing runs are there.

        Raises:
            ConfigError: one was not measured.
        """
        for family, sizes in ((Family.DECODE, shapes.decode_rows), (Family.MIXED, shapes.mixed_tokens)):
            for size in sizes:
                self._line((family, Variant.LEAN, size))


def _fitted(entries: Sequence[StepTime]) -> Line:
    """The line through the measurements of one program, by least squares; nothing is negative.

    What cannot be told apart, as with one measurement, is all of the program itself.
    """
    seconds = np.array([entry.seconds for entry in entries])
    columns = {
        "base": np.ones(len(entries)),
        "token": np.array([entry.context_tokens for entry in entries], np.float64),
        "pair": np.array([entry.pairs for entry in entries], np.float64),
        "repeated": -np.array([entry.repeated_tokens for entry in entries], np.float64),
    }
    columns = {name: column for name, column in columns.items() if column.any()}
    scales = {name: float(np.abs(column).max()) for name, column in columns.items()}
    while True:
        names = list(columns)
        matrix = np.stack([columns[name] / scales[name] for name in names], axis=1)
        weights, _, rank, _ = np.linalg.lstsq(matrix, seconds, rcond=1e-9)
        if len(names) == 1 or (rank == len(names) and weights.min() >= 0):
            break
        # without its least: what is negative, or else the last of what is too much for so few measurements
        del columns[names[int(weights.argmin())] if rank == len(names) else names[-1]]
    found = {name: 1e9 * weight / scales[name] for name, weight in zip(names, weights.tolist(), strict=True)}
    token = found.get("token", 0.0)
    return Line(found.get("base", 0.0), token, found.get("pair", 0.0), min(found.get("repeated", 0.0), token))
