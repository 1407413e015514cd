"""The six charts of step records, with matplotlib (document: V-4)."""

# matplotlib's keyword arguments have no types
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from scheduler.step_statistics import Floats, Statistics
from serving.commands.profile_reading import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS: Final = 4000
"""Of a line or a scatter; of more, evenly chosen ones are drawn."""
BINS: Final = 50
DPI: Final = 90
SCHEDULE, MODEL, DECODE = "#b35900", "#1f6feb", "#2a7f3f"


class ChartsUnavailable(Exception):
    """The library that draws is not installed."""


@dataclass(slots=True, frozen=True)
class Chart:
    """One picture."""

    name: str
    title: str
    png: bytes


def draw(readings: Sequence[Reading]) -> list[Chart]:
    """Draw the six charts, one panel a file with the same axes.

    Raises:
        ChartsUnavailable: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # an extra, and slow to import
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ChartsUnavailable(
            f"charts need matplotlib ({error}); install it with: pip install 'radjax[profile]'"
        ) from error
    charts: list[Chart] = []
    for name, title, panel in PANELS:
        figure = Figure(figsize=(7.5 if len(readings) == 1 else 12.5, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(readings), squeeze=False, sharex=panel is not _trend, sharey=True)[0]
        for ax, reading in zip(axes, readings, strict=True):
            panel(ax, reading.statistics)
            if len(readings) > 1:
                ax.set_title(reading.name, fontsize=9)
            ax.grid(visible=True, alpha=0.25)
        figure.suptitle(title)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        charts.append(Chart(name, title, buffer.getvalue()))
    return charts


def _trend(ax: Axes, statistics: Statistics) -> None:
    at = _rows(statistics)
    _line(ax, statistics, at, "model", "model run", MODEL)
    _line(ax, statistics, at, "schedule", "schedule", SCHEDULE)
    ax.set_yscale("log")
    ax.set(xlabel="batch", ylabel="ms")
    ax.legend(fontsize=8)


def _requests(ax: Axes, statistics: Statistics) -> None:
    at = _rows(statistics)
    _line(ax, statistics, at, "decode", "decode", DECODE)
    _line(ax, statistics, at, "prefill", "prefill", MODEL)
    ax.set(xlabel="batch", ylabel="requests")
    ax.legend(fontsize=8)


def _tokens(ax: Axes, statistics: Statistics) -> None:
    _line(ax, statistics, _rows(statistics), "tokens", "tokens", DECODE)
    ax.set(xlabel="batch", ylabel="scheduled tokens")


def _schedule_histogram(ax: Axes, statistics: Statistics) -> None:
    _histogram(ax, statistics, "schedule", SCHEDULE)


def _model_histogram(ax: Axes, statistics: Statistics) -> None:
    _histogram(ax, statistics, "model", MODEL)


def _correlation(ax: Axes, statistics: Statistics) -> None:
    at = _rows(statistics)
    schedule, model = statistics.columns["schedule"][at], statistics.columns["model"][at]
    both = ~np.isnan(model)
    ax.set(xlabel="schedule ms", ylabel="model run ms")
    if not both.any():
        _absent(ax, "model run")
        return
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.scatter(schedule[both], model[both], s=6, alpha=0.35, color=MODEL, edgecolors="none")
    if both.sum() > 2 and schedule[both].std() and model[both].std():
        r = float(np.corrcoef(schedule[both], model[both])[0, 1])
        ax.annotate(f"r = {r:.2f}", (0.98, 0.94), xycoords="axes fraction", ha="right", fontsize=9)


PANELS: Final[tuple[tuple[str, str, Callable[[Axes, Statistics], None]], ...]] = (
    ("schedule_and_model_time", "Schedule time and model run time", _trend),
    ("prefill_and_decode_requests", "Prefill and decode requests of a batch", _requests),
    ("tokens", "Scheduled tokens of a batch", _tokens),
    ("schedule_time_histogram", "Distribution of schedule times", _schedule_histogram),
    ("model_time_histogram", "Distribution of model run times", _model_histogram),
    ("schedule_against_model_time", "Model run time against schedule time", _correlation),
)


def _rows(statistics: Statistics) -> np.ndarray:
    """Indices of the rows that are drawn."""
    count = len(statistics.columns["schedule"])
    return np.linspace(0, count - 1, min(count, MAX_POINTS)).astype(np.int64)


def _line(ax: Axes, statistics: Statistics, at: np.ndarray, column: str, label: str, color: str) -> None:
    values = statistics.columns[column][at]
    if not np.isnan(values).all():
        ax.plot(at * statistics.columns.stride + 1, values, label=label, color=color, linewidth=0.8)


def _histogram(ax: Axes, statistics: Statistics, column: str, color: str) -> None:
    values: Floats = statistics.values(column)
    ax.set(xlabel="ms", ylabel="batches")
    if not values.size:
        _absent(ax, "model run")
        return
    mean, p95 = float(values.mean()), float(np.quantile(values, 0.95))
    # the slowest batch would press all others into one bar
    ax.hist(np.minimum(values, 2 * p95), bins=BINS, color=color)
    ax.axvline(mean, color="black", linewidth=1, label=f"mean {mean:.2f} ms")
    ax.axvline(p95, color="black", linewidth=1, linestyle="--", label=f"P95 {p95:.2f} ms")
    ax.legend(fontsize=8, title="last bar: and more", title_fontsize=7)


def _absent(ax: Axes, what: str) -> None:
    ax.annotate(f"this file has no {what} times", (0.5, 0.5), xycoords="axes fraction", ha="center")
