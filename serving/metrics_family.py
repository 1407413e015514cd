"""Figures on their way to Prometheus: one name with its samples, and histograms that count in fixed buckets."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, Protocol

from prometheus_client.core import HistogramMetricFamily, Metric

Kind = Literal["gauge", "counter", "histogram"]
Labels = Mapping[str, str]

MAX_SERIES: Final = 256
"""Different values of the labels of one name; what goes beyond is counted together."""
OTHER: Final = "other"


class Histogram:
    """Counts observations in buckets with fixed upper bounds, and sums them.

    Args:
        bounds: ascending; an observation on a bound lies in the bucket that it closes.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def plus(self, other: "Histogram") -> "Histogram":
        """A new one with the observations of both, which have the same bounds."""
        both = Histogram(self.bounds)
        both.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        both.total = self.total + other.total
        return both


@dataclass(slots=True, frozen=True)
class Sample:
    """One series at this moment."""

    labels: Labels
    value: float | Histogram


@dataclass(slots=True, frozen=True)
class Family:
    """One name. ``stem`` has neither the server's prefix nor the ``_total`` of counters."""

    stem: str
    kind: Kind
    text: str
    samples: Sequence[Sample]


class Source(Protocol):
    """A part of the figures."""

    def families(self) -> Iterable[Family]:
        """All of its names as they stand, each once; names whose feature does not exist are left out."""
        ...


class Counts:
    """Counters by the values of their labels, at most ``MAX_SERIES`` of them."""

    def __init__(self, names: Sequence[str], seed: Iterable[tuple[str, ...]] = ()) -> None:
        self._names = tuple(names)
        self._values: dict[tuple[str, ...], float] = dict.fromkeys(seed, 0.0)

    def add(self, values: tuple[str, ...], amount: float = 1) -> None:
        """Count ``amount`` more for these label values."""
        if values not in self._values and len(self._values) >= MAX_SERIES:
            values = (OTHER,) * len(self._names)
        self._values[values] = self._values.get(values, 0.0) + amount

    def samples(self, base: Labels) -> list[Sample]:
        """One a label value, each with the labels of ``base`` too."""
        return [Sample({**base, **self._labels(key)}, value) for key, value in self._values.items()]

    def _labels(self, values: tuple[str, ...]) -> Labels:
        return dict(zip(self._names, values, strict=True))


class Histograms:
    """Histograms by the values of their labels, at most ``MAX_SERIES`` of them."""

    def __init__(self, names: Sequence[str], bounds: Sequence[float], seed: Iterable[tuple[str, ...]] = ()) -> None:
        self._names = tuple(names)
        self._bounds = tuple(bounds)
        self._values: dict[tuple[str, ...], Histogram] = {key: Histogram(self._bounds) for key in seed}

    def observe(self, values: tuple[str, ...], amount: float) -> None:
        """Count one observation for these label values."""
        found = self._values.get(values)
        if found is None:
            if len(self._values) >= MAX_SERIES:
                values = (OTHER,) * len(self._names)
            found = self._values.setdefault(values, Histogram(self._bounds))
        found.observe(amount)

    def samples(self, base: Labels) -> list[Sample]:
        """One a label value, each with the labels of ``base`` too."""
        return [
            Sample({**base, **dict(zip(self._names, key, strict=True))}, value) for key, value in self._values.items()
        ]


def merged(samples: Iterable[Sample]) -> list[Sample]:
    """Samples with equal labels added up."""
    found: dict[tuple[tuple[str, str], ...], Sample] = {}
    for sample in samples:
        key = tuple(sorted(sample.labels.items()))
        before = found.get(key)
        found[key] = sample if before is None else Sample(sample.labels, _sum(before.value, sample.value))
    return list(found.values())


def exposed(name: str, family: Family) -> Metric:
    """A family under a full name, as prometheus_client writes it."""
    if family.kind == "histogram":
        return _histogram(name, family)
    metric = Metric(name, family.text, family.kind)
    suffix = "_total" if family.kind == "counter" else ""
    for sample in family.samples:
        assert not isinstance(sample.value, Histogram), "a number is no histogram"
        metric.add_sample(name + suffix, dict(sample.labels), sample.value)  # pyright: ignore[reportUnknownMemberType]
    return metric


def _histogram(name: str, family: Family) -> Metric:
    names = list(family.samples[0].labels) if family.samples else []
    metric = HistogramMetricFamily(name, family.text, labels=names)
    for sample in family.samples:
        value = sample.value
        assert isinstance(value, Histogram), "a histogram's samples are histograms"
        bounds = [*map(float, value.bounds), float("inf")]
        buckets = [(_bound(bound), count) for bound, count in zip(bounds, accumulate(value.counts), strict=True)]
        metric.add_metric([sample.labels[each] for each in names], buckets=buckets, sum_value=value.total)
    return metric


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(bound)


def _sum(one: float | Histogram, other: float | Histogram) -> float | Histogram:
    if isinstance(one, Histogram) and isinstance(other, Histogram):
        return one.plus(other)
    assert not isinstance(one, Histogram), "samples of one family are of one kind"
    assert not isinstance(other, Histogram), "samples of one family are of one kind"
    return one + other
