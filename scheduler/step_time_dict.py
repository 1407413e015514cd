"""The newest times of decode steps by number of rows (documents: M-1, M-18)."""

from collections import deque

import msgspec

from scheduler.stopwatch import TimedStep

MAX_SIZES = 64
TIMES_OF_A_SIZE = 16


class StepTimeDict:
    """A ``StepListener``; the batch size whose step came longest ago gives way to a new one."""

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}

    def timed(self, step: TimedStep) -> None:
        """See ``StepListener``. Steps with prompt pieces say nothing about decoding."""
        rows = len(step.plan.decode)
        if step.plan.pieces or not rows:
            return
        times = self._times.pop(rows, None) or deque(maxlen=TIMES_OF_A_SIZE)
        times.append(round(step.laps.total / 1e9, 6))
        self._times[rows] = times  # now the last of the dictionary
        if len(self._times) > MAX_SIZES:
            del self._times[next(iter(self._times))]

    def state(self) -> dict[str, str]:
        """``step_time_dict`` as JSON: batch size to its newest step times in seconds, oldest first."""
        by_size = {str(rows): list(times) for rows, times in sorted(self._times.items())}
        return {"step_time_dict": msgspec.json.encode(by_size).decode()}
