"""What step records add up to: one pass over any number of them, in bounded memory (document: V-3)."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scheduler.step_record import StepRecord

MAX_ROWS: Final = 2**18
MAX_BUCKETS: Final = 256
SLOW_MS: Final = 10.0
"""A batch whose scheduling takes longer is counted as slow (document: V-5)."""

Floats = NDArray[np.float64]


class Columns:
    """Rows of numbers by column. Beyond a bound every second row goes, again and again: even, and the same each time.

    Args:
        names: of the columns.
        most: rows that are kept.
    """

    def __init__(self, names: Sequence[str], most: int = MAX_ROWS) -> None:
        self.stride = 1
        """One row in so many is kept."""
        self._columns = {name: array("d") for name in names}
        self._most = most
        self._seen = 0

    def add(self, row: Sequence[float]) -> None:
        """Take the next row."""
        if self._seen % self.stride == 0:
            for column, value in zip(self._columns.values(), row, strict=True):
                column.append(value)
        self._seen += 1
        if self._seen // self.stride >= self._most:
            self._columns = {name: column[::2] for name, column in self._columns.items()}
            self.stride *= 2

    def __getitem__(self, name: str) -> Floats:
        """The rows kept of a column, in order; NaN where a record lacks the field."""
        return np.array(self._columns[name], np.float64)


@dataclass(slots=True, frozen=True)
class Figure:
    """One statistic."""

    label: str
    value: float
    digits: int
    unit: str = ""

    def text(self) -> str:
        """The value as it is shown."""
        value = self.value * 100 if self.unit == "%" else self.value
        return f"{value:,.{self.digits}f}" + (f" {self.unit}" if self.unit else "")


COLUMNS: Final = ("schedule", "model", "total", "prefill", "decode", "tokens", "waiting", "running", "usage", "batch")


class Statistics:
    """Sums over records, and the columns from which quantiles, trends and charts are made."""

    def __init__(self) -> None:
        self.batches = 0
        self.columns = Columns(COLUMNS)
        self.sums: dict[str, float] = dict.fromkeys(COLUMNS, 0.0)
        """Of every column, of those records that have it."""
        self.counts: Counter[str] = Counter()
        """Records that have the column."""
        self.chunks: Counter[int] = Counter()
        """Prefill chunks by the power of two that their size does not exceed."""
        self.chunk_tokens = 0
        self.largest_chunk = 0
        self.smallest_chunk = 0
        self.decode_tokens = 0
        self.decode_chunks = 0
        self.buckets: dict[tuple[str, int], tuple[int, int]] = {}
        """By mode and bucket: batches, and their padding."""
        self.padding = 0
        self.computed = 0
        """Tokens and padding of the records that tell the padding."""
        self.retractions = 0
        self.cached_tokens = 0
        self.slow = 0
        self.first_s: float | None = None
        self.last_s: float | None = None

    def add(self, record: StepRecord) -> None:
        """Take the next record."""
        self.batches += 1
        row = (
            record.schedule_duration_ms,
            record.model_run_duration_ms,
            record.total_step_duration_ms,
            record.num_prefill_reqs,
            record.num_decode_reqs,
            record.total_scheduled_tokens,
            record.num_waiting_reqs,
            record.num_running_reqs,
            record.kv_cache_usage,
            record.batch_id,
        )
        self.columns.add([np.nan if value is None else value for value in row])
        for name, value in zip(COLUMNS, row, strict=True):
            if value is not None:
                self.sums[name] += value
                self.counts[name] += 1
        self.slow += record.schedule_duration_ms > SLOW_MS
        self._add_chunks(record)
        self.retractions += record.retractions or 0
        self.cached_tokens += record.cached_tokens or 0
        if record.padding is not None:
            self._add_padding(record, record.padding)
        if record.timestamp is not None:
            self.first_s = record.timestamp if self.first_s is None else self.first_s
            self.last_s = record.timestamp

    def _add_chunks(self, record: StepRecord) -> None:
        sizes = record.prefill_chunk_sizes
        for size in sizes:
            self.chunks[1 << max(0, size - 1).bit_length()] += 1
        if sizes:
            smallest = min(sizes)
            self.smallest_chunk = min(self.smallest_chunk, smallest) if self.largest_chunk else smallest
            self.largest_chunk = max(self.largest_chunk, *sizes)
            self.chunk_tokens += sum(sizes)
        self.decode_tokens += sum(record.decode_chunk_sizes)
        self.decode_chunks += len(record.decode_chunk_sizes)

    def _add_padding(self, record: StepRecord, padding: int) -> None:
        self.padding += padding
        self.computed += padding + record.total_scheduled_tokens
        key = (record.mode or "", record.bucket or 0)
        if key in self.buckets or len(self.buckets) < MAX_BUCKETS:
            batches, padded = self.buckets.get(key, (0, 0))
            self.buckets[key] = batches + 1, padded + padding

    def mean(self, name: str) -> float | None:
        """Of a column, over the records that have it; None if none has."""
        return self.sums[name] / self.counts[name] if self.counts[name] else None

    def values(self, name: str) -> Floats:
        """The rows kept of a column that records have."""
        column = self.columns[name]
        return column[~np.isnan(column)]

    @property
    def tokens_per_s(self) -> float:
        """Tokens over the summed step time; over the summed schedule time where the file has no step time."""
        spent_ms = self.sums["total"] if self.counts["total"] else self.sums["schedule"]
        return self.sums["tokens"] / spent_ms * 1000 if spent_ms else 0.0

    @property
    def scheduling_share(self) -> float | None:
        """Mean scheduling over mean step; None without step times."""
        schedule, total = self.mean("schedule"), self.mean("total")
        return schedule / total if schedule is not None and total else None

    @property
    def span(self) -> str:
        """From when to when, with the time zone; empty when the records do not tell."""
        if self.first_s is None or self.last_s is None:
            return ""
        first, last = (datetime.fromtimestamp(s, UTC) for s in (self.first_s, self.last_s))
        return f"{first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC"


def figures(statistics: Statistics) -> list[Figure]:
    """Every statistic that the records allow, in the order of the report."""
    schedule, model = statistics.values("schedule"), statistics.values("model")
    chunks, prefill, decode = sum(statistics.chunks.values()), statistics.sums["prefill"], statistics.sums["decode"]
    found = [
        Figure("batches", statistics.batches, 0),
        Figure("schedule time, mean", statistics.mean("schedule") or 0.0, 3, "ms"),
        Figure("schedule time, max", float(schedule.max(initial=0)), 3, "ms"),
        Figure("schedule time, min", float(schedule.min()) if schedule.size else 0.0, 3, "ms"),
        Figure("schedule time, P95", _p95(schedule), 3, "ms"),
    ]
    if model.size:
        found += [
            Figure("model run, mean", statistics.mean("model") or 0.0, 3, "ms"),
            Figure("model run, P95", _p95(model), 3, "ms"),
        ]
    if (total := statistics.mean("total")) is not None:
        found.append(Figure("step, mean", total, 3, "ms"))
    if statistics.scheduling_share is not None:
        found.append(Figure("scheduling share of a step", statistics.scheduling_share, 1, "%"))
    found += [
        Figure("throughput", statistics.tokens_per_s, 1, "tokens/s"),
        Figure("prefill requests, mean", statistics.mean("prefill") or 0.0, 2),
        Figure("decode requests, mean", statistics.mean("decode") or 0.0, 2),
        Figure("prefill share", prefill / (prefill + decode) if prefill + decode else 0.0, 1, "%"),
        Figure("prefill chunk, mean", statistics.chunk_tokens / chunks if chunks else 0.0, 1, "tokens"),
        Figure("prefill chunk, max", statistics.largest_chunk, 0, "tokens"),
        Figure("prefill chunk, min", statistics.smallest_chunk, 0, "tokens"),
        Figure("decode chunk, mean", _share(statistics.decode_tokens, statistics.decode_chunks), 2, "tokens"),
        Figure(f"batches over {SLOW_MS:.0f} ms of scheduling", statistics.slow, 0),
    ]
    for label, name in (("waiting requests", "waiting"), ("running requests", "running")):
        if (mean := statistics.mean(name)) is not None:
            found.append(Figure(f"{label}, mean", mean, 2))
            found.append(Figure(f"{label}, max", float(statistics.values(name).max()), 0))
    if (usage := statistics.mean("usage")) is not None:
        found.append(Figure("KV cache usage, mean", usage, 1, "%"))
        found.append(Figure("KV cache usage, max", float(statistics.values("usage").max()), 1, "%"))
    if statistics.computed:
        found.append(Figure("padding share", statistics.padding / statistics.computed, 1, "%"))
        found.append(Figure("cached prompt tokens", statistics.cached_tokens, 0))
        found.append(Figure("retractions", statistics.retractions, 0))
    return found


def lines(statistics: Statistics) -> list[str]:
    """The statistics as lines of text."""
    found = figures(statistics)
    width = max(len(figure.label) for figure in found)
    return [f"{figure.label:<{width}}  {figure.text():>16}" for figure in found]


def _p95(values: Floats) -> float:
    return float(np.quantile(values, 0.95)) if values.size else 0.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
