"""Which request is more urgent, and what follows for the waiting queue.

Inside the engine urgency is one number, larger for more urgent; ``urgency`` alone knows which way priorities count.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Literal, ParamSpec

from scheduler.request import Request

Direction = Literal["off", "high_first", "low_first"]
"""Whether priorities count, and which of two is the more urgent."""

LEAST_URGENT = -(2**31)
"""Urgency of a request without a priority, as in SGLang."""

_Given = ParamSpec("_Given")


def urgency(priority: int | None, direction: Direction) -> int:
    """The urgency of a request; the same for all when priorities do not count (SGLang ignores them then)."""
    if direction == "off":
        return 0
    if priority is None:
        return LEAST_URGENT
    return priority if direction == "high_first" else -priority


def urgent_first(order: Callable[_Given, Iterable[Request]]) -> Callable[_Given, Iterable[Request]]:
    """An order by urgency; the given one decides among equals."""

    def ordered(*args: _Given.args, **kwargs: _Given.kwargs) -> Iterable[Request]:
        # a reversed sort keeps equals as they were
        return sorted(order(*args, **kwargs), key=attrgetter("urgency"), reverse=True)

    return ordered


class NeverRun:
    """Waiting requests that have never run, the least urgent first and of equals the youngest first.

    A full queue may drop them; whoever has run before keeps its place.
    """

    def __init__(self) -> None:
        self._levels: list[int] = []
        """Urgencies that somebody has, ascending."""
        self._by_level: dict[int, dict[int, Request]] = {}

    def add(self, request: Request) -> None:
        """A new request waits; arrivals come in order."""
        level = self._by_level.get(request.urgency)
        if level is None:
            level = self._by_level[request.urgency] = {}
            insort(self._levels, request.urgency)
        level[request.number] = request

    def discard(self, request: Request) -> None:
        """It waits no more, or it has run before and was not here."""
        level = self._by_level.get(request.urgency, {})
        if level.pop(request.number, None) is not None and not level:
            del self._by_level[request.urgency]
            del self._levels[bisect_left(self._levels, request.urgency)]

    def __iter__(self) -> Iterator[Request]:
        for urgency_level in self._levels:
            yield from reversed(self._by_level[urgency_level].values())


def displaced(never_run: Iterable[Request], newcomer_urgency: int, requests: int, tokens: int) -> list[Request]:
    """Whom a full queue drops for a newcomer: the least urgent, as few as will do; nobody unless that is enough.

    Args:
        never_run: candidates, the least urgent first.
        newcomer_urgency: only requests below it give way.
        requests: how many have to go at least.
        tokens: how many prompt tokens have to go at least.
    """
    victims: list[Request] = []
    for request in never_run:
        if (requests <= 0 and tokens <= 0) or request.urgency >= newcomer_urgency:
            break
        victims.append(request)
        requests -= 1
        tokens -= request.prompt_len
    return victims if requests <= 0 and tokens <= 0 else []
