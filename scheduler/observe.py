"""What the engine tells those who watch: every turn's events, and figures after every step."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from configs.schema import Parallel
from model.interface import Family, StepInput, StepOutput
from scheduler.commands import LEAK_POOLS, FinishReason, StepStats
from scheduler.invariants import Leak
from scheduler.page_use import usage
from scheduler.planner import Plan
from scheduler.request import Request
from scheduler.roster import Roster
from scheduler.tick import Tick

StepMode = Literal["decode", "mixed", "score", "idle"]
WINDOW_STEPS = 64
WINDOW_NS = 10_000_000_000


@dataclass(slots=True, frozen=True)
class Committed:
    """A step was read."""

    plan: Plan
    output: StepOutput


@dataclass(slots=True, frozen=True)
class CacheFlushed:
    """Cached prefixes were forgotten on request."""

    pages: int


@dataclass(slots=True, frozen=True)
class Queued:
    """A request was accepted."""

    rid: str
    position: int
    """In the queue, from 1 on."""


@dataclass(slots=True, frozen=True)
class Ended:
    """An accepted request got its terminal answer."""

    rid: str
    reason: FinishReason


Event = Tick | Plan | Committed | StepStats | CacheFlushed | Queued | Ended


class Observer(Protocol):
    """Sees every event on the engine's thread, in order. Must not block, and changes nothing."""

    def observe(self, event: Event) -> None:
        """Take one event."""
        ...


@dataclass(slots=True)
class Counters:
    """Totals since the start."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    steps_decode: int = 0
    steps_mixed: int = 0
    steps_score: int = 0
    padded_tokens: int = 0
    scheduled_tokens: int = 0
    retractions: int = 0
    finished: int = 0
    aborted: int = 0
    rejected: int = 0
    preemptions: int = 0
    displaced: int = 0
    waiting_timeouts: int = 0
    running_timeouts: int = 0
    decode_tokens: int = 0
    retracted_input_tokens: int = 0
    retracted_output_tokens: int = 0
    leaks: dict[str, int] = field(default_factory=lambda: dict[str, int].fromkeys(LEAK_POOLS, 0))
    """By pool. A change makes a new one, as the figures hold it."""


logger = logging.getLogger(__name__)


class Rate:
    """Events a second over the last steps, at most ten seconds back."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, int]] = deque(maxlen=WINDOW_STEPS)

    def mark(self, now_ns: int, total: int) -> None:
        """Note the total reached."""
        self._marks.append((now_ns, total))

    def per_s(self, now_ns: int) -> float:
        """The rate; 0 when unknown. Old marks count for nothing."""
        first = next((mark for mark in self._marks if now_ns - mark[0] <= WINDOW_NS), None)
        if first is None:
            return 0.0
        last = self._marks[-1]
        span_ns = last[0] - first[0]
        return (last[1] - first[1]) * 1e9 / span_ns if span_ns > 0 else 0.0

    def clear(self) -> None:
        """Forget; the rate is unknown."""
        self._marks.clear()


class Monitor:
    """Counts what happens and tells the observers."""

    def __init__(self, roster: Roster, observers: Sequence[Observer], replica: int, parallel: Parallel) -> None:
        self.counters = Counters()
        if roster.tiers is not None:
            self.counters.leaks["host"] = 0
        self.replica = replica
        self.parallel = parallel
        self.drain = Rate()
        """Requests that end."""
        self.forward_count = 0
        """Steps launched since the start or the last flush (document: O-22)."""
        self.mode: StepMode = "idle"
        """Of the step launched last; idle since a rest (document: O-43)."""
        self._leaks: list[Leak] = []
        """Found when the engine last came to rest."""
        self._roster = roster
        self._observers = tuple(observers)
        self._output = Rate()
        self._input = Rate()
        self._read_tokens = 0
        """Of prompt pieces, in steps that were read."""
        self._last: Plan | None = None
        """Of the step that was read since the last report."""

    def tell(self, event: Event) -> None:
        """Pass an event to every observer."""
        if isinstance(event, Committed):
            self._last = event.plan
            self._read_tokens += sum([piece.length for piece in event.plan.pieces])
        elif isinstance(event, Tick) and self._roster.idle:
            self._input.clear()
            self._input.mark(event.now_ns, self._read_tokens)
        for observer in self._observers:
            observer.observe(event)

    def admitted(self, request: Request) -> None:
        """Count a request's prompt when it is first admitted."""
        if not request.retractions:
            self.counters.prompt_tokens += request.prompt_len
            self.counters.cached_tokens += request.cached_tokens

    def queued(self, request: Request) -> None:
        """Tell of a request that was accepted."""
        self.tell(Queued(request.rid, len(self._roster.waiting)))

    def ended(self, request: Request, now_ns: int) -> None:
        """Count an accepted request that was answered."""
        counters = self.counters
        assert request.finish is not None, "an answered request has ended"
        if request.finish.reason is FinishReason.ABORT:
            counters.aborted += 1
        else:
            counters.finished += 1
        self.drain.mark(now_ns, counters.finished + counters.aborted)
        self.tell(Ended(request.rid, request.finish.reason))

    def dropped(self, request: Request) -> None:
        """Count an accepted request that never ran and was refused in the end."""
        self.counters.rejected += 1
        self.tell(Ended(request.rid, FinishReason.ABORT))

    def flushed(self, flushed: CacheFlushed) -> None:
        """The cache was flushed: steps are counted anew (document: O-23)."""
        self.forward_count = 0
        self.tell(flushed)

    def leaked(self, found: list[Leak]) -> None:
        """Report and count what is held by nobody, once for as long as it stays the same."""
        counters = self.counters
        for leak in found:
            if leak not in self._leaks:
                counters.leaks = {**counters.leaks, leak.pool: counters.leaks.get(leak.pool, 0) + 1}
                logger.error("%s", leak.text)
        self._leaks = found

    def retracted(self, plan: Plan) -> None:
        """Count the requests that a plan sends back to the queue, and the tokens that they give up."""
        counters = self.counters
        counters.preemptions += len(plan.preempt)
        for request in (*plan.retract, *plan.preempt):
            counters.retractions += 1
            counters.retracted_input_tokens += request.prompt_len
            counters.retracted_output_tokens += len(request.output)

    def launched(self, step: StepInput) -> None:
        """Count a step by its family, its tokens and its padding."""
        counters = self.counters
        self.forward_count += 1
        self.mode = step.family.value
        counters.scheduled_tokens += step.num_tokens
        counters.decode_tokens += step.num_decode
        counters.padded_tokens += step.size - step.num_tokens
        if step.family is Family.DECODE:
            counters.steps_decode += 1
        elif step.family is Family.MIXED:
            counters.steps_mixed += 1
        else:
            counters.steps_score += 1

    def produced(self, now_ns: int) -> None:
        """Mark what has been put out and taken in after a step, for the throughputs."""
        self._output.mark(now_ns, self.counters.output_tokens)
        self._input.mark(now_ns, self._read_tokens)

    def rest(self) -> None:
        """Nothing runs: both throughputs are zero."""
        self._output.clear()
        self._input.clear()
        self.mode = "idle"

    def report(self, step: int, now_ns: int, token_ratio: float, late_compiles: int, paused: bool) -> None:
        """Give the observers the figures of now."""
        if self._observers:
            self.tell(self._stats(step, now_ns, token_ratio, late_compiles, paused))

    def _stats(self, step: int, now_ns: int, token_ratio: float, late_compiles: int, paused: bool) -> StepStats:
        roster, kv, counters = self._roster, self._roster.kv, self.counters
        # an answered request stays among the running, with its pages, until its rows in flight are read
        running = [request for request in roster.running.values() if request.finish is None]
        uncomputed = sum([one.prompt_len - one.computed for one in running if one.computed < one.prompt_len])
        last, self._last = self._last, None
        busy = bool(running or roster.waiting)
        return StepStats(
            replica=self.replica,
            step=step,
            time_ns=now_ns,
            num_running=len(running),
            num_queued=len(roster.waiting),
            tokens_used=(kv.num_pages - kv.available()[0]) * kv.page_size if running else 0,
            tokens_cached=kv.cached * kv.page_size,
            tokens_total=kv.num_pages * kv.page_size,
            waiting_prompt_tokens=roster.waiting_tokens,
            pending_prompt_tokens=roster.waiting_tokens + uncomputed,
            gen_throughput=self._output.per_s(now_ns) if busy else 0.0,
            evicted_tokens=kv.evicted * kv.page_size,
            late_compiles=late_compiles,
            new_token_ratio=token_ratio,
            prompt_tokens=counters.prompt_tokens,
            output_tokens=counters.output_tokens,
            cached_tokens=counters.cached_tokens,
            steps_decode=counters.steps_decode,
            steps_mixed=counters.steps_mixed,
            steps_score=counters.steps_score,
            padded_tokens=counters.padded_tokens,
            scheduled_tokens=counters.scheduled_tokens,
            retractions=counters.retractions,
            finished=counters.finished,
            aborted=counters.aborted,
            rejected=counters.rejected,
            preemptions=counters.preemptions,
            displaced=counters.displaced,
            waiting_timeouts=counters.waiting_timeouts,
            running_timeouts=counters.running_timeouts,
            leaks=counters.leaks,
            paused=paused,
            tiers=roster.tiers.stats() if roster.tiers else None,
            swa_token_usage=(usage(groups) if running else 0.0) if (groups := kv.use()[1:]) else None,
            input_throughput=self._input.per_s(now_ns) if busy else 0.0,
            tokens_free=kv.free()[0] * kv.page_size,
            decode_tokens=counters.decode_tokens,
            retracted_input_tokens=counters.retracted_input_tokens,
            retracted_output_tokens=counters.retracted_output_tokens,
            family=last.family.value if last else "",
            size=last.size if last else 0,
            step_tokens=len(last.decode) + sum([piece.length for piece in last.pieces]) if last else 0,
        )
