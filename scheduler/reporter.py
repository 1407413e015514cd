"""Passes on to the collector what an engine says of itself: figures, times of steps, programs that became ready."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from model.interface import CompileReport
from scheduler.commands import Compiled, Reports, StepStats, StepTimes
from scheduler.observe import Event
from scheduler.stopwatch import TimedStep

MAX_COMPILED: Final = 1024
"""Programs that wait to be told of: far more than there are."""
REPORT_EVERY_NS: Final = 10_000_000
"""So often at most while steps follow one another; a step that takes longer is told of at once, and so is a rest."""
MAX_UNSENT: Final = 256


class Outlet(Protocol):
    """Where reports go."""

    def report(self, stats: Reports) -> None:
        """Send some reports. Never blocks. For the engine's thread."""
        ...


class Reporter:
    """An ``Observer`` and a ``StepListener``.

    Args:
        outlet: takes the reports.
        replica: which engine this is.
        clock: monotonic nanoseconds.
    """

    def __init__(self, outlet: Outlet, replica: int, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._outlet = outlet
        self._replica = replica
        self._clock = clock
        self._compiled: deque[Compiled] = deque(maxlen=MAX_COMPILED)
        self._unsent: list[StepStats | StepTimes | Compiled] = []
        self._sent_ns = 0

    def observe(self, event: Event) -> None:
        """Take one event."""
        if not isinstance(event, StepStats):
            return
        self._unsent.append(event)
        now_ns = self._clock()
        due = now_ns - self._sent_ns >= REPORT_EVERY_NS or len(self._unsent) >= MAX_UNSENT
        if due or not event.family:
            self._sent_ns = now_ns
            self.flush()

    def timed(self, step: TimedStep) -> None:
        """Take the times of one step."""
        laps = step.laps
        self._unsent.append(
            StepTimes(
                replica=self._replica,
                family=step.plan.family.value,
                size=step.plan.size,
                step_s=laps.total / 1e9,
                receive_s=laps.receive / 1e9,
                plan_s=laps.plan / 1e9,
                launch_s=laps.launch / 1e9,
                commit_s=laps.commit / 1e9,
                emit_s=laps.emit / 1e9,
            )
        )

    def compiled(self, done: CompileReport) -> None:
        """Remember that a program is ready. Safe from any thread."""
        self._compiled.append(
            Compiled(
                family=done.family.value,
                variant=done.variant.value,
                size=done.size,
                seconds=done.seconds,
                from_cache=done.from_cache,
                replica=self._replica,
            )
        )

    def flush(self) -> None:
        """Send what is not sent yet, and the programs that became ready since the last time."""
        while self._compiled:
            self._unsent.append(self._compiled.popleft())
        if self._unsent:
            reports, self._unsent = self._unsent, []
            self._outlet.report(Reports(reports=reports))
