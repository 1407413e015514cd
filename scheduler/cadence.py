"""When a report is due that goes with the log lines: after every prefill step, every so many decode steps, at rest."""

from typing import Literal

from scheduler.commands import StepStats

Report = Literal["prefill", "decode", "rest"]


class Cadence:
    """Counts decode steps (documents: M-4, M-5, M-21).

    Args:
        interval: decode steps from one report to the next.
    """

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._decoded = 0

    def due(self, stats: StepStats) -> Report | None:
        """The report that is due with these figures. Those of an engine that became idle or paused have no step."""
        if not stats.family:
            self._decoded = 0  # a rest begins anew (document: O-22)
            return "rest"
        if stats.family != "decode":
            return "prefill"
        self._decoded += 1
        return None if self._decoded % self._interval else "decode"
