"""What step records show, in sentences: pure, from their statistics (documents: V-5, V-7)."""

from typing import Final

import numpy as np

from scheduler.step_statistics import SLOW_MS, Floats, Statistics

PADDING: Final = 0.25
SCHEDULING: Final = 0.2
KV_FULL: Final = 0.95
BLOCK: Final = 50
"""Batches over which a level of schedule time is taken."""
JUMP: Final = 3.0
JUMP_MS: Final = 0.5
STARVED_BATCHES: Final = 4
QUEUE_GROWTH: Final = 2.0
QUEUE_LEAST: Final = 4.0


def findings(statistics: Statistics) -> list[str]:
    """A sentence on everything that is worth a look; none where all is well."""
    found = [
        _padding(statistics),
        _scheduling(statistics),
        _slow(statistics),
        _jump(statistics),
        _queue(statistics),
        _starved(statistics),
        _memory(statistics),
    ]
    return [sentence for sentence in found if sentence]


def _padding(statistics: Statistics) -> str:
    if not statistics.computed or statistics.padding <= PADDING * statistics.computed:
        return ""
    (mode, bucket), (batches, padding) = max(statistics.buckets.items(), key=lambda item: item[1][1])
    share = padding / (batches * bucket) if bucket else 0.0
    return (
        f"Padding: {statistics.padding / statistics.computed:.0%} of what was computed was padding, most of it in "
        f"{mode} batches of bucket {bucket} ({batches:,} batches, {share:.0%} padding)."
    )


def _scheduling(statistics: Statistics) -> str:
    share = statistics.scheduling_share
    if share is None or share <= SCHEDULING:
        return ""
    return f"Scheduling takes {share:.0%} of a step: the device may wait for the host."


def _slow(statistics: Statistics) -> str:
    if not statistics.slow:
        return ""
    schedule, batch = statistics.columns["schedule"], statistics.columns["batch"]
    worst = int(schedule.argmax())
    where = "" if np.isnan(batch[worst]) else f" in batch {batch[worst]:.0f}"
    return (
        f"Slow scheduling: {statistics.slow:,} of {statistics.batches:,} batches took over {SLOW_MS:.0f} ms to "
        f"schedule, the worst {schedule[worst]:.1f} ms{where}."
    )


def _jump(statistics: Statistics) -> str:
    """Where the level of schedule time, over blocks of batches, rose most."""
    schedule = statistics.columns["schedule"]
    blocks = len(schedule) // BLOCK
    if blocks < 2:
        return ""
    levels = np.median(schedule[: blocks * BLOCK].reshape(blocks, BLOCK), axis=1)
    before, after = levels[:-1], levels[1:]
    jumps = np.flatnonzero((after > JUMP * before) & (after - before > JUMP_MS))
    if not jumps.size:
        return ""
    at = int(jumps[np.argmax(after[jumps] - before[jumps])])
    row = (at + 1) * BLOCK
    return (
        f"Schedule time jumps from {before[at]:.2f} to {after[at]:.2f} ms (medians of {BLOCK} batches) "
        f"around {_batch(statistics, row)}; {jumps.size} such jumps in all."
    )


def _queue(statistics: Statistics) -> str:
    waiting = statistics.values("waiting")
    if len(waiting) < 4:
        return ""
    quarter = len(waiting) // 4
    first, last = float(waiting[:quarter].mean()), float(waiting[-quarter:].mean())
    if last < QUEUE_LEAST or last <= QUEUE_GROWTH * first:
        return ""
    return (
        f"The queue grows: {first:.1f} requests waited on average in the first quarter, {last:.1f} in the last. "
        "More comes in than goes out."
    )


def _starved(statistics: Statistics) -> str:
    """The longest stretch of batches without decode rows while requests beside those being prefilled ran."""
    columns = statistics.columns
    if not len(columns["running"]) or np.isnan(columns["running"]).all():
        return ""
    starved = (columns["decode"] == 0) & (columns["prefill"] > 0) & (columns["running"] > columns["prefill"])
    start, length = _longest(starved)
    if length < STARVED_BATCHES:
        return ""
    stood_ms = float(np.nansum(columns["total"][start : start + length]))
    lasted = f", {stood_ms:,.0f} ms" if stood_ms else ""
    return (
        f"Decoding stood still for {length} batches in a row{lasted} from {_batch(statistics, start)} on, while "
        "prompts were computed: smaller chunks, or steps that mix both, would let it go on."
    )


def _memory(statistics: Statistics) -> str:
    usage = statistics.values("usage")
    full = usage.size and float((usage >= KV_FULL).mean())
    if statistics.retractions:
        return (
            f"{statistics.retractions:,} requests were retracted for want of KV pages; usage reached "
            f"{usage.max(initial=0):.0%}."
        )
    return f"The KV cache was at least {KV_FULL:.0%} full in {full:.0%} of the batches." if full else ""


def _batch(statistics: Statistics, row: int) -> str:
    batch = statistics.columns["batch"][row]
    return f"line {row * statistics.columns.stride + 1}" if np.isnan(batch) else f"batch {batch:.0f}"


def _longest(flags: Floats) -> tuple[int, int]:
    """Start and length of the longest stretch of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    if not edges.size:
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    longest = int(lengths.argmax())
    return int(edges[2 * longest]), int(lengths[longest])
