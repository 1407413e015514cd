"""What a run came to: requests, rates, latencies, queue, cache and steps, counted while an engine runs."""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from model.interface import StepInput
from scheduler.commands import Delta, Finished, FinishReason, Rejected, StepStats
from scheduler.observe import Event
from scheduler.port import Answer


class Spread(Struct, frozen=True):
    """Percentiles in milliseconds; 0 where there was nothing to measure."""

    p50: float
    p95: float
    p99: float


class Figures(Struct, frozen=True, kw_only=True):
    """One run. Seconds are those of the engine's clock unless a name says wall."""

    clock: str
    """``recorded`` or ``model``: whose time it is."""
    requests: int
    finished: int
    aborted: int
    rejected: int
    unanswered: int
    """Open when the recording ended; a simulation leaves none."""
    seconds: float
    prompt_tokens: int
    output_tokens: int
    in_tok_s: float
    out_tok_s: float
    ttft_ms: Spread
    e2e_ms: Spread
    queue_mean: float
    """Waiting requests, weighted by time."""
    queue_max: int
    hit_rate: float
    """Share of the prompt tokens admitted that came from the cache."""
    retractions: int
    preemptions: int
    """Of the retractions, those in favour of a more urgent request."""
    evicted_tokens: int
    steps: int
    steps_by_program: dict[str, int]
    padding_share: float
    """Share of the computed tokens that were padding."""
    page_use_max: float
    """Share of the pool that running requests held at most."""
    wall_s: float
    requests_per_wall_s: float


class Meter:
    """Counts a run; an ``Observer``. Its memory grows by two numbers a turn and two a request.

    The engine reads its clock at the start of a turn and stamps answers with that. The meter is told when turns end,
    and takes a token to be there at the end of the turn that read it.
    """

    def __init__(self) -> None:
        self.steps: Counter[str] = Counter()
        self.answered = 0
        self._requests = self._finished = self._aborted = self._rejected = 0
        self._prompt_tokens = self._output_tokens = 0
        self._ttft, self._e2e = array("q"), array("q")
        self._turns, self._ends = array("q"), array("q")
        self._open: dict[str, list[int]] = {}
        """When the open requests of an id arrived."""
        self._pending: list[Answer] = []
        self._stats: StepStats | None = None
        self._first_ns: int | None = None
        self._queue_ns = self._queue_max = self._used_max = 0

    @property
    def num_open(self) -> int:
        """Requests that have not been answered."""
        return sum(map(len, self._open.values()))

    def arrived(self, rid: str, at_ns: int) -> None:
        """A request entered the system."""
        self._requests += 1
        self._open.setdefault(rid, []).append(at_ns)
        if self._first_ns is None:
            self._first_ns = at_ns

    def turn(self, ended_ns: int, begins_ns: int) -> None:
        """A turn begins, and the one before ended at ``ended_ns``."""
        self.end(ended_ns)
        self._turns.append(begins_ns)

    def end(self, ended_ns: int) -> None:
        """The last turn ended: time what it answered."""
        if len(self._ends) < len(self._turns):
            self._ends.append(ended_ns)
        for _, answer in self._pending:
            if isinstance(answer, Finished | Rejected):
                self._terminal(answer, ended_ns)
        self._pending.clear()

    def sent(self, answers: Sequence[Answer]) -> None:
        """Answers were made in this turn."""
        self._pending += [one for one in answers if not isinstance(one[1], Delta)]

    def launched(self, step: StepInput) -> None:
        """A step was launched."""
        self.steps[f"{step.family}/{step.variant}/{step.size}"] += 1

    def observe(self, event: Event) -> None:
        """Take one event; only the figures after a step matter here."""
        if not isinstance(event, StepStats):
            return
        if self._stats is not None:
            self._queue_ns += self._stats.num_queued * (event.time_ns - self._stats.time_ns)
        self._stats = event
        self._queue_max = max(self._queue_max, event.num_queued)
        self._used_max = max(self._used_max, event.tokens_used)

    def figures(self, clock: str, wall_s: float) -> Figures:
        """The sums. Call it after ``end``."""
        stats, last = self._stats, self._ends[-1] if self._ends else 0
        first = self._first_ns or 0
        seconds = max(last - first, 0) / 1e9
        computed = stats.scheduled_tokens + stats.padded_tokens if stats else 0
        return Figures(
            clock=clock,
            requests=self._requests,
            finished=self._finished,
            aborted=self._aborted,
            rejected=self._rejected,
            unanswered=self.num_open,
            seconds=round(seconds, 6),
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            in_tok_s=_ratio(self._prompt_tokens, seconds),
            out_tok_s=_ratio(self._output_tokens, seconds),
            ttft_ms=_spread(self._ttft),
            e2e_ms=_spread(self._e2e),
            queue_mean=_ratio(self._queue_ns / 1e9, seconds),
            queue_max=self._queue_max,
            hit_rate=_ratio(stats.cached_tokens, stats.prompt_tokens) if stats else 0.0,
            retractions=stats.retractions if stats else 0,
            preemptions=stats.preemptions if stats else 0,
            evicted_tokens=stats.evicted_tokens if stats else 0,
            steps=self.steps.total(),
            steps_by_program=dict(sorted(self.steps.items(), key=lambda item: _by_size(item[0]))),
            padding_share=_ratio(stats.padded_tokens, computed) if stats else 0.0,
            page_use_max=_ratio(self._used_max, stats.tokens_total) if stats else 0.0,
            wall_s=round(wall_s, 3),
            requests_per_wall_s=_ratio(self._requests, wall_s),
        )

    def _terminal(self, answer: Finished | Rejected, ended_ns: int) -> None:
        arrivals = self._open.get(answer.rid)
        assert arrivals, f"request {answer.rid} was answered twice"
        # an id that is taken is refused while the first request of it goes on
        arrived_ns = arrivals.pop(-1 if isinstance(answer, Rejected) else 0)
        if not arrivals:
            del self._open[answer.rid]
        self.answered += 1
        if isinstance(answer, Rejected):
            self._rejected += 1
            return
        self._prompt_tokens += answer.prompt_tokens
        self._output_tokens += answer.output_tokens
        if answer.times.first_token_ns:
            self._ttft.append(self._end_of(answer.times.first_token_ns) - arrived_ns)
        if answer.reason is FinishReason.ABORT:
            self._aborted += 1
        else:
            self._finished += 1
            self._e2e.append(ended_ns - arrived_ns)

    def _end_of(self, turn_ns: int) -> int:
        """When the turn that began at ``turn_ns`` ended."""
        return self._ends[bisect_right(self._turns, turn_ns) - 1]


def lines(figures: Figures) -> list[str]:
    """The figures for people."""
    rows = [
        (
            "requests",
            f"{figures.requests}: {figures.finished} finished, {figures.aborted} aborted, "
            f"{figures.rejected} rejected, {figures.unanswered} unanswered",
        ),
        ("time", f"{figures.seconds:.2f} s ({figures.clock} clock)"),
        ("prompt tokens", f"{figures.prompt_tokens}, {figures.in_tok_s:.1f} a second"),
        ("output tokens", f"{figures.output_tokens}, {figures.out_tok_s:.1f} a second"),
        ("TTFT", _words(figures.ttft_ms)),
        ("end to end", _words(figures.e2e_ms)),
        ("queue", f"mean {figures.queue_mean:.2f}, at most {figures.queue_max}"),
        ("cache", f"{figures.hit_rate:.1%} of the prompt tokens, {figures.evicted_tokens} tokens evicted"),
        ("retractions", f"{figures.retractions}, preemptions {figures.preemptions}"),
        ("pages", f"at most {figures.page_use_max:.1%} in use"),
        ("steps", f"{figures.steps}, {figures.padding_share:.1%} of their tokens padding"),
        *((f"  {name}", str(count)) for name, count in figures.steps_by_program.items()),
        ("wall time", f"{figures.wall_s:.2f} s, {figures.requests_per_wall_s:.0f} requests a second"),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _words(spread: Spread) -> str:
    return f"p50 {spread.p50:.1f}, p95 {spread.p95:.1f}, p99 {spread.p99:.1f} ms"


def _spread(nanoseconds: Sequence[int]) -> Spread:
    if not nanoseconds:
        return Spread(0.0, 0.0, 0.0)
    values = np.percentile(np.array(nanoseconds, np.int64), (50, 95, 99)).tolist()
    return Spread(*(round(value / 1e6, 3) for value in values))


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole > 0 else 0.0


def _by_size(program: str) -> tuple[str, int]:
    kind, _, size = program.rpartition("/")
    return kind, int(size)
