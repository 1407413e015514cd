"""Which request is more urgent, and what follows for the waiting queue.

Inside the engine urgency is one number, larger for more urgent; ``urgency`` alone knows which way priorities count.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from typing import Literal

from scheduler.request import Request

Direction = Literal["off", "high_first", "low_first"]
"""Whether priorities count, and which of two is the more urgent."""

LEAST_URGENT = -(2**31)
"""Urgency of a request without a priority, as in SGLang."""


def urgency(priority: int | None, direction: Direction) -> int:
    """The urgency of a request; the same for all when priorities do not count (SGLang ignores them then)."""
    if direction == "off":
        return 0
    if priority is None:
        return LEAST_URGENT
    return priority if direction == "high_first" else -priority


class Levels:
    """The waiting requests by urgency; at each level those that were sent back, then the others as they came.

    Adding, sending back and removing one cost the same however many wait, and nothing is sorted to read them.
    """

    def __init__(self) -> None:
        self._levels: list[int] = []
        """Urgencies that somebody has, ascending."""
        self._by_level: dict[int, OrderedDict[int, Request]] = {}

    def add(self, request: Request) -> None:
        """A new request waits; arrivals come in order."""
        level = self._by_level.get(request.urgency)
        if level is None:
            level = self._by_level[request.urgency] = OrderedDict()
            insort(self._levels, request.urgency)
        level[request.number] = request

    def put_back(self, request: Request) -> None:
        """A request that has run waits again, at the head of its level."""
        self.add(request)
        self._by_level[request.urgency].move_to_end(request.number, last=False)

    def remove(self, request: Request) -> None:
        """It waits no more."""
        level = self._by_level[request.urgency]
        del level[request.number]
        if not level:
            del self._by_level[request.urgency]
            del self._levels[bisect_left(self._levels, request.urgency)]

    def __iter__(self) -> Iterator[Collection[Request]]:
        """The levels, the most urgent first."""
        for level in reversed(self._levels):
            yield self._by_level[level].values()

    def never_run(self) -> Iterator[Request]:
        """Those that have not run, the least urgent first and of equals the youngest first.

        A full queue may drop them; whoever has run before keeps its place.
        """
        for level in self._levels:
            for request in reversed(self._by_level[level].values()):
                if request.retractions:
                    break  # what is before it was sent back, too
                yield request


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
