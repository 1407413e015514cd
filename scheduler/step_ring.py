"""The last steps, for whoever asks: one small value a step, kept whether anybody watches or not."""

from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Final

from scheduler.commands import StepMark, StepStats
from scheduler.observe import Committed, Event
from scheduler.planner import Plan
from scheduler.tick import Tick

MAX_STEPS: Final = 512


class StepRing:
    """An ``Observer``. A step lasts from its launch, or from the end of the step before, until it was read.

    Args:
        clock: monotonic nanoseconds, as the ticks have them.
        size: steps that are kept.
    """

    def __init__(self, clock: Callable[[], int], size: int = MAX_STEPS) -> None:
        self._clock = clock
        self._steps: deque[StepMark] = deque(maxlen=size)
        self._flight: deque[int] = deque()
        """When the turns began that launched what is not read; the loop's depth bounds it."""
        self._turn_ns = self._start_ns = self._end_ns = 0
        self._number = 0
        self._read: Plan | None = None

    def observe(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Tick):
            self._turn_ns = event.now_ns
        elif isinstance(event, Plan):
            if event.size:
                self._flight.append(self._turn_ns)
        elif isinstance(event, Committed):
            self._start_ns = max(self._flight.popleft(), self._end_ns)
            self._end_ns = max(self._start_ns, self._clock())
            self._read = event.plan
        elif isinstance(event, StepStats) and self._read is not None:
            self._mark(self._read, event)
            self._read = None

    def since(self, since_ns: int) -> list[StepMark]:
        """Steps that ended after ``since_ns``, in order."""
        recent = list(takewhile(lambda mark: mark.end_ns > since_ns, reversed(self._steps)))
        recent.reverse()
        return recent

    def _mark(self, plan: Plan, stats: StepStats) -> None:
        self._number += 1
        count, pieces = len(plan.decode), plan.pieces
        tokens = count + sum([piece.length for piece in pieces]) if pieces else count
        self._steps.append(
            StepMark(
                self._number,
                self._start_ns,
                self._end_ns,
                plan.family.value,
                plan.size,
                tokens,
                count,
                len(pieces),
                stats.num_running,
                stats.num_queued,
            )
        )
