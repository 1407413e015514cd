"""Who has waited or run for too long: pure functions of the clock reading that the Tick brought.

Every open request is under exactly one clock: until it first runs under that of waiting, from then on, also while it
is back in the queue, under that of running.
"""

from collections.abc import Iterable
from typing import NamedTuple

from scheduler.request import Request


class TimeLimits(NamedTuple):
    """In nanoseconds; 0 is no limit."""

    waiting_ns: int = 0
    running_ns: int = 0


def overdue_waiting(waiting: Iterable[Request], limits: TimeLimits, now_ns: int) -> list[Request]:
    """Requests that never ran and arrived too long ago. ``waiting``: in order of arrival, after those that ran."""
    overdue: list[Request] = []
    if not limits.waiting_ns:
        return overdue
    for request in waiting:
        if request.retractions:
            continue
        if now_ns - request.arrived_ns <= limits.waiting_ns:
            break
        overdue.append(request)
    return overdue


def overdue_running(started: Iterable[Request], limits: TimeLimits, now_ns: int) -> list[Request]:
    """Requests that first ran too long ago. ``started``: in the order in which they first ran."""
    overdue: list[Request] = []
    if not limits.running_ns:
        return overdue
    for request in started:
        if now_ns - request.admitted_ns <= limits.running_ns:
            break
        overdue.append(request)
    return overdue
