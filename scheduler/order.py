"""Orders of the waiting queue, as pure functions of the queue, what runs, a seed and the step.

In every order the requests of ``Queue.first`` come first: those that were retracted, and those that were passed over
as often as may be. The rest follows by the rule's key, in order of arrival among equals (the rules are SGLang's,
``managers/schedule_policy.py``; document: O-19). Requests are handed out as they are asked for: a plan takes few.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice

import numpy as np

from scheduler.radix_cache import Hit
from scheduler.request import Request

Peek = Callable[[Request], Hit]

LOOKUP_LIMIT = 128
"""Requests up to which an order by cached prefixes is worth a look into the cache for each (SGLang's bound)."""
WINDOW = 1024
"""Requests at the head of the queue that the other orders sort; those behind follow as they came.

A look at each of 10,000 requests takes 5 to 13 ms (measured 2026-11-21 on a shared CPU), more than a plan may take.
"""


@dataclass(slots=True, frozen=True)
class Queue:
    """All that an order depends on."""

    waiting: Iterable[Request]
    """Retracted requests, then the others as they came. May be read more than once."""
    count: int
    running: Iterable[Request]
    peek: Peek
    page_size: int
    seed: int
    step: int
    """Number of the last step; with the seed it determines a random order."""
    max_passed_over: int = 0
    """How often a request may be passed over before it comes first; 0: none ever is."""
    levels: Iterable[Collection[Request]] = ()
    """``waiting`` by urgency, the most urgent first; each level in the order of ``waiting``."""

    def first(self, request: Request) -> bool:
        """Whether it comes before all others."""
        return request.retractions > 0 or 0 < self.max_passed_over <= request.passed_over

    def split(self) -> tuple[list[Request], list[Request], Iterator[Request]]:
        """Of the window those that come first, and the others; then what lies behind the window."""
        first: list[Request] = []
        rest: list[Request] = []
        for request in islice(self.waiting, WINDOW):
            (first if self.first(request) else rest).append(request)
        return first, rest, islice(self.waiting, WINDOW, None)


Order = Callable[[Queue], Iterable[Request]]
"""The waiting requests in the order in which they are tried."""


def fcfs(queue: Queue) -> Iterable[Request]:
    """First come, first served; whoever was passed over or retracted stands at the head already."""
    return queue.waiting


def longest_prefix(queue: Queue) -> Iterable[Request]:
    """The longest cached prefix first; first come, first served in a long queue.

    That a prefix two requests share is computed once is the planner's doing, in every order.
    """
    if queue.count > LOOKUP_LIMIT:
        return queue.waiting
    return sorted(queue.waiting, key=lambda request: (not queue.first(request), -queue.peek(request).reach))


def depth_first(queue: Queue) -> Iterable[Request]:
    """Through the tree of cached prefixes depth first, the branch with most requests first, children before parents.

    So the requests under one branch follow each other while it is cached. First come, first served in a long queue.
    """
    if queue.count > LOOKUP_LIMIT:
        return queue.waiting
    first, rest, _ = queue.split()
    found: list[_Found] = []
    for place, request in enumerate(rest):
        prefix = request.tokens(0, queue.peek(request).pages * queue.page_size).tobytes()
        found.append(_Found(request.namespace if prefix else b"", prefix, place, request))
    found.sort(key=lambda entry: (entry.namespace, entry.prefix, entry.place))
    return chain(first, _below(found, 0, queue.page_size * 4))


def longest_output(queue: Queue) -> Iterable[Request]:
    """The largest ``max_new_tokens`` first."""
    first, rest, behind = queue.split()
    yield from first
    lengths = np.array([-request.max_new for request in rest], np.int64)
    for place in np.argsort(lengths, kind="stable"):
        yield rest[place]
    yield from behind


def shuffled(queue: Queue) -> Iterable[Request]:
    """By lot, drawn anew each step."""
    first, rest, behind = queue.split()
    yield from first
    lots = random.Random(queue.seed << 64 | queue.step)
    for left in range(len(rest), 0, -1):
        drawn = lots.randrange(left)
        rest[drawn], rest[left - 1] = rest[left - 1], rest[drawn]
        yield rest[left - 1]
    yield from behind


def by_routing_key(queue: Queue) -> Iterable[Request]:
    """Keys that run already first, the most frequent before the others, then key by key; else as they came.

    Where SGLang compares the keys themselves the first arrival decides, so that no key is at a disadvantage.
    """
    running: Counter[str | None] = Counter(request.routing_key for request in queue.running if request.routing_key)
    if not running:
        yield from queue.waiting
        return
    first, rest, behind = queue.split()
    yield from first
    by_key: dict[str | None, list[Request]] = {}
    for request in rest:
        by_key.setdefault(request.routing_key, []).append(request)
    for key in sorted(by_key, key=lambda key: -running[key]):
        yield from by_key[key]
    yield from behind


def urgent_first(order: Order) -> Order:
    """An order by urgency: within each level the given one decides.

    Levels are ordered when a plan gets to them, which is rare: it takes few requests of a long queue.
    """

    def ordered(queue: Queue) -> Iterable[Request]:
        return chain.from_iterable(order(replace(queue, waiting=level)) for level in queue.levels)

    return ordered


ORDERS: dict[str, Order] = {
    "fcfs": fcfs,
    "lpm": longest_prefix,
    "dfs-weight": depth_first,
    "lof": longest_output,
    "random": shuffled,
    "routing-key": by_routing_key,
}


@dataclass(slots=True, frozen=True)
class _Found:
    """A waiting request and what is cached of it."""

    namespace: bytes
    prefix: bytes
    place: int
    """In the queue."""
    request: Request


def _below(found: list[_Found], at: int, page_bytes: int) -> Iterator[Request]:
    """Requests whose cached prefixes are the same up to ``at``: branch by branch, then those that end there."""
    ending = [entry for entry in found if len(entry.prefix) == at]
    rest = [entry for entry in found if len(entry.prefix) > at]
    branches = [
        list(branch) for _, branch in groupby(rest, lambda entry: (entry.namespace, entry.prefix[at : at + page_bytes]))
    ]
    branches.sort(key=lambda branch: (-len(branch), min(entry.place for entry in branch)))
    for branch in branches:
        yield from _below(branch, _common(branch[0].prefix, branch[-1].prefix, page_bytes), page_bytes)
    yield from (entry.request for entry in ending)


def _common(one: bytes, other: bytes, page_bytes: int) -> int:
    """Bytes of whole pages at the start of both; of sorted prefixes the ends have in common what all have."""
    size = min(len(one), len(other))
    low, high = 0, size // page_bytes
    while low < high:
        middle = (low + high + 1) // 2
        if one[low * page_bytes : middle * page_bytes] == other[low * page_bytes : middle * page_bytes]:
            low = middle
        else:
            high = middle - 1
    return low * page_bytes
