"""Which cached prefix goes first, and the queue of those that may go.

A policy is a pure function from what is known of the use of a prefix to a sort key; the smallest key
is evicted first. The names and their meaning are SGLang's (`radix_eviction_policy`: lru, lfu, slru,
fifo, mru, filo, priority); ages are ticks of the tree's own counter, never wall time.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Generic, Protocol, TypeVar

from configs.schema import Eviction

PROTECTED_USES: Final = 2
"""Requests that must have used a prefix before ``slru`` prefers to keep it."""

Key = tuple[int, int]


class Used(Protocol):
    """What a policy may look at."""

    born: int
    """Tick at which it was computed; later pages of the same request count as computed with its first."""
    tick: int
    """Tick of its last use."""
    uses: int
    """Requests that have used it, the one that computed it included; one that was retracted counts once more."""
    priority: int
    """The highest of those requests."""


Policy = Callable[[Used], Key]


def lru(prefix: Used) -> Key:
    """Least recently used first."""
    return prefix.tick, 0


def mru(prefix: Used) -> Key:
    """Most recently used first."""
    return -prefix.tick, 0


def fifo(prefix: Used) -> Key:
    """First computed first."""
    return prefix.born, 0


def filo(prefix: Used) -> Key:
    """Last computed first."""
    return -prefix.born, 0


def lfu(prefix: Used) -> Key:
    """Least often used first; of equals the least recently used."""
    return prefix.uses, prefix.tick


def slru(prefix: Used) -> Key:
    """What only one request used before what several did (segmented LRU); of equals the least recently used."""
    return int(prefix.uses >= PROTECTED_USES), prefix.tick


def by_priority(prefix: Used) -> Key:
    """Lowest priority first; of equals the least recently used."""
    return prefix.priority, prefix.tick


POLICIES: Final[Mapping[Eviction, Policy]] = MappingProxyType(
    {"lru": lru, "lfu": lfu, "slru": slru, "fifo": fifo, "mru": mru, "filo": filo, "priority": by_priority}
)


class Queued(Used, Protocol):
    """What can stand in the queue."""

    number: int
    """Unique; breaks ties."""
    place: int | None
    """Where it stands in the queue, which alone writes this; None outside."""


T = TypeVar("T", bound=Queued)


class EvictionQueue(Generic[T]):
    """A binary heap that knows where everything in it stands (Sedgewick and Wayne, Algorithms, 2.4).

    It holds exactly what may be evicted: no stale entries, hence no clearing up. Each operation takes
    logarithmic time; adding what was just used takes constant time under ``lru``.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._heap: list[tuple[Key, int, T]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def first(self) -> T:
        """What goes first; there must be something."""
        return self._heap[0][2]

    def put(self, item: T) -> None:
        """Add ``item``, or move it to where it belongs after it was used."""
        entry = (self._policy(item), item.number, item)
        if item.place is None:
            self._heap.append(entry)
            self._rise(len(self._heap) - 1, entry)
        else:
            self._settle(item.place, entry)

    def drop(self, item: T) -> None:
        """Take ``item`` out if it is there."""
        place = item.place
        if place is None:
            return
        item.place = None
        last = self._heap.pop()
        if last[2] is not item:
            self._settle(place, last)

    def _settle(self, place: int, entry: tuple[Key, int, T]) -> None:
        """Put ``entry`` where ``place`` has become free, or below or above."""
        if place and entry < self._heap[(place - 1) // 2]:
            self._rise(place, entry)
        else:
            self._sink(place, entry)

    def _rise(self, place: int, entry: tuple[Key, int, T]) -> None:
        heap = self._heap
        while place:
            above = (place - 1) // 2
            parent = heap[above]
            if parent < entry:
                break
            heap[place] = parent
            parent[2].place = place
            place = above
        heap[place] = entry
        entry[2].place = place

    def _sink(self, place: int, entry: tuple[Key, int, T]) -> None:
        heap = self._heap
        size = len(heap)
        while (below := 2 * place + 1) < size:
            child = heap[below]
            if below + 1 < size and heap[below + 1] < child:
                below += 1
                child = heap[below]
            if entry < child:
                break
            heap[place] = child
            child[2].place = place
            place = below
        heap[place] = entry
        entry[2].place = place
