"""Passes on to the collector what an engine says of itself: figures, times of steps, programs that became ready."""

from collections import deque
from typing import Final, Protocol

from model.interface import CompileReport
from scheduler.commands import Compiled, StepStats, StepTimes
from scheduler.observe import Event
from scheduler.stopwatch import TimedStep

MAX_COMPILED: Final = 1024
"""Programs that wait to be told of: far more than there are."""


class Outlet(Protocol):
    """Where reports go."""

    def report(self, stats: StepStats | StepTimes | Compiled) -> None:
        """Send one report. Never blocks. For the engine's thread."""
        ...


class Reporter:
    """An ``Observer`` and a ``StepListener``.

    Args:
        outlet: takes the reports.
        replica: which engine this is.
    """

    def __init__(self, outlet: Outlet, replica: int) -> None:
        self._outlet = outlet
        self._replica = replica
        self._compiled: deque[Compiled] = deque(maxlen=MAX_COMPILED)

    def observe(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, StepStats):
            self._outlet.report(event)
            if self._compiled:
                self.flush()

    def timed(self, step: TimedStep) -> None:
        """Take the times of one step."""
        laps = step.laps
        self._outlet.report(
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
            )
        )

    def flush(self) -> None:
        """Tell of the programs that became ready since the last time."""
        while self._compiled:
            self._outlet.report(self._compiled.popleft())
