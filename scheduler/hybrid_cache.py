"""Two page groups: full pages of the layers that see everything, window pages of those with a sliding window.

``KVCache`` owns slots and full pages; ``WindowPages`` owns the others, and here they are kept in step. A lease has as
many entries in both groups, each at its absolute place; of its window pages it gives up those that no token still to be
computed sees, and their entries become page 0:

    full     |-- shared: in the cache --|------ its own ------|
    window   |- dropped: 0 -|- cached --|------ its own ------|

A cached prefix can be gone on from only where the window before its end is cached too. The original is SGLang's
SWARadixCache; that of the documents is chosen by O-26.
"""

from collections import Counter
from itertools import chain

import numpy as np

from model.interface import Int32, PageId, SlotId
from scheduler.cache_listener import WINDOW_GROUP, CacheListener
from scheduler.kv_cache import KVCache, Lease
from scheduler.page_allocator import PageAllocator
from scheduler.page_use import GroupUse
from scheduler.prefix_cache import PrefixCache
from scheduler.radix_cache import Hit, Node
from scheduler.window_pages import WindowPages


class HybridCache:
    """Pages of two groups, slots, and two page tables; used as ``KVCache`` is.

    Args:
        full: the owner of slots and full pages.
        pages: its free list.
        cache: its prefix cache.
        window: the owner of the window pages.
        listener: hears of window pages that enter and leave the cache; the tree tells of the full ones.
    """

    def __init__(
        self,
        full: KVCache,
        pages: PageAllocator,
        cache: PrefixCache,
        window: WindowPages,
        listener: CacheListener | None = None,
    ) -> None:
        self.page_size = full.page_size
        self.tables: tuple[Int32, ...] = (*full.tables, np.zeros_like(full.tables[0]))
        """By page group, int32[slots + 1, pages_per_row]: the pages of the slot's lease, 0 for those it dropped."""
        self.evicted = 0
        """Full pages evicted since the start."""
        self._full = full
        self._pages = pages
        self._cache = cache
        self._window = window
        self._listener = listener
        self._leases: dict[SlotId, Lease] = {}

    @property
    def num_pages(self) -> int:
        """Full pages in all."""
        return self._full.num_pages

    @property
    def free_slots(self) -> int:
        """Slots that nobody holds."""
        return self._full.free_slots

    @property
    def num_leases(self) -> int:
        """Leases that are open."""
        return len(self._leases)

    @property
    def root(self) -> Node:
        """The empty prefix of the cache."""
        return self._cache.root

    @property
    def cached(self) -> int:
        """Full pages in the prefix cache."""
        return self._full.cached

    def available(self) -> tuple[int, ...]:
        """Pages that could be had now, by group: free, or evictable."""
        return (*self._full.available(), self._window.available)

    def free(self) -> tuple[int, ...]:
        """Pages that neither a lease nor the prefix cache holds, by group."""
        return (*self._full.free(), self._window.use().free)

    def use(self) -> tuple[GroupUse, ...]:
        """Who holds the pages, by group."""
        return (*self._full.use(), self._window.use())

    def peek(self, tokens: Int32, namespace: bytes) -> Hit:
        """What of ``tokens`` is cached and can be gone on from. Changes nothing."""
        path = self._cache.path(tokens.tobytes(), namespace)
        pages = [page for node, count in path for page in node.pages[:count]]
        left = usable = self._window.usable(pages)
        unlocked = 0
        for node, count in path:
            if node.refs == 0:
                unlocked += min(count, left)
            left -= min(count, left)
        return Hit(usable, unlocked, self._window.loose(pages[max(0, usable - self._window.needed) : usable]))

    def open(self, tokens: Int32, namespace: bytes, priority: int = 0) -> Lease:
        """Take a slot, lock the longest cached prefix of ``tokens`` that can be gone on from, hold the window there."""
        usable = self.peek(tokens, namespace).pages
        lease = self._full.open(tokens[: usable * self.page_size], namespace, priority)
        first = max(0, usable - self._window.needed)
        held = [self._window.hold(page) for page in lease.pages[0][first:]]
        lease.pages = (lease.pages[0], [PageId(0)] * first + held)
        lease.dropped = first
        self.tables[1][lease.slot, first:usable] = held
        self._leases[lease.slot] = lease
        return lease

    def grow(self, lease: Lease, length: int) -> None:
        """Give the lease pages of both groups for ``length`` tokens; evicts what that takes."""
        pages = lease.pages[1]
        count = -(-length // self.page_size) - len(pages)
        if count <= 0:
            return
        self._evict(count - len(self._pages))
        self._full.grow(lease, length)
        self._evict_window(count - self._window.use().free)
        fresh = self._window.take(count)
        self.tables[1][lease.slot, len(pages) : len(pages) + count] = fresh
        pages += fresh

    def publish(self, lease: Lease, tail: Int32) -> None:
        """Offer the cache the full pages of ``tail`` with their window pages, and drop what has left the window.

        What is dropped here may be written by the next step: the device works in order, and every token up to the end
        of ``tail`` has been launched.
        """
        start, size = lease.shared, self.page_size
        self._full.publish(lease, tail)
        full, window = lease.pages
        for at in range(start, lease.shared):
            page = self._window.adopt(full[at], window[at])
            if page != window[at]:
                window[at] = page
                self.tables[1][lease.slot, at] = page
            elif self._listener is not None:
                parent, key = full[at - 1] if at else None, tail[(at - start) * size : (at - start + 1) * size]
                self._listener.stored(lease.namespace, parent, key.tobytes(), [full[at]], group=WINDOW_GROUP)
        self._drop(lease, lease.published - self._window.needed)

    def close(self, lease: Lease, tail: Int32) -> None:
        """Publish what is full of ``tail``, free the rest and the slot. The lease must not be used again."""
        self.publish(lease, tail)
        self._drop(lease, len(lease.pages[1]))
        del self._leases[lease.slot]
        self._full.close(lease, tail[:0])

    def reclaimable(self, lease: Lease) -> tuple[int, ...]:
        """Pages that closing the lease would certainly make available, by group. Changes nothing."""
        held = lease.pages[0][lease.dropped : lease.shared]
        own = len(lease.pages[1]) - max(lease.dropped, lease.shared)
        return (*self._full.reclaimable(lease), own + sum(map(self._window.sole, held)))

    def flush(self) -> int:
        """Evict everything that is not locked; returns how many full pages that was."""
        before = self.evicted
        self._evict(self._cache.evictable)
        self._evict_window(self._window.num_pages)
        return self.evicted - before

    def check(self) -> None:
        """Assert that every page of both groups and every slot has one owner, and that counters and tables say so."""
        self._full.check()
        held: Counter[PageId] = Counter()
        own: list[PageId] = []
        table = np.zeros_like(self.tables[1])
        for lease in self._leases.values():
            full, window = lease.pages
            assert len(full) == len(window), "a lease has more pages in one group than in the other"
            assert not any(window[: lease.dropped]), "a lease holds a window page that it dropped"
            assert all(window[lease.dropped :]), "a lease lacks a window page that it has not dropped"
            assert lease.dropped <= max(0, lease.published - self._window.needed), "a window page was dropped too early"
            held.update(full[lease.dropped : lease.shared])
            own += window[max(lease.dropped, lease.shared) :]
            table[lease.slot, : len(window)] = window
        cached = set(chain.from_iterable(node.pages for node in self._cache.nodes()))
        self._window.check(cached, dict(held), own)
        assert np.array_equal(table, self.tables[1]), "a window page table differs from its lease"

    def _drop(self, lease: Lease, end: int) -> None:
        """Let go of the window pages before place ``end``."""
        full, window = lease.pages
        for at in range(lease.dropped, end):
            if at < lease.shared:
                self._window.release(full[at])
            else:
                self._window.give(window[at])
            window[at] = PageId(0)
        if end > lease.dropped:
            self.tables[1][lease.slot, lease.dropped : end] = 0
            lease.dropped = end

    def _evict(self, count: int) -> None:
        """Free up to ``count`` cached full pages, and the window pages beside them."""
        if count > 0:
            freed = self._cache.evict(count)
            self.evicted += len(freed)
            self._gone(self._window.forget(freed))
            self._pages.give(freed)

    def _evict_window(self, count: int) -> None:
        """Free up to ``count`` cached window pages; their full pages stay cached."""
        self._gone(self._window.evict(count))

    def _gone(self, full: list[PageId]) -> None:
        if full and self._listener is not None:
            self._listener.removed(full, group=WINDOW_GROUP)
