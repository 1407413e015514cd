"""Orders of the waiting queue, as pure functions."""

from collections.abc import Callable, Iterable, Sequence

from scheduler.radix_cache import Hit
from scheduler.request import Request

Peek = Callable[[Request], Hit]
Order = Callable[[Sequence[Request] | Iterable[Request], int, Peek], Iterable[Request]]
"""(requests as they came, their number, peek) -> the same requests in the order in which they are tried."""

LPM_LIMIT = 128
"""Requests up to which longest-prefix order is worth a look into the cache for each (SGLang's bound)."""


def fcfs(waiting: Iterable[Request], count: int, peek: Peek) -> Iterable[Request]:
    """First come, first served; retracted requests stand at the head of the queue already."""
    del count, peek
    return waiting


def longest_prefix(waiting: Iterable[Request], count: int, peek: Peek) -> Iterable[Request]:
    """Retracted requests first, then the longest cached prefix; first come, first served in a long queue."""
    if count > LPM_LIMIT:
        return waiting
    return sorted(waiting, key=lambda request: (request.retractions == 0, -peek(request).pages))


ORDERS: dict[str, Order] = {"fcfs": fcfs, "lpm": longest_prefix}
