"""The only owner of KV pages and request slots.

Every page is free, in the prefix cache, or owned by exactly one lease. A lease holds, in order,
pages of the cache (``shared`` of them, locked) and pages of its own:

    |-- shared: in the cache --|-- its own --|
    0              shared * page size    capacity

Page groups: ``Lease.pages``, ``available`` and the page tables are tuples by group; here there is one, and two in
``scheduler.hybrid_cache``.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from model.interface import Int32, PageId, SlotId
from scheduler.host_tier import Held, HostTier
from scheduler.page_allocator import PageAllocator
from scheduler.page_use import GroupUse
from scheduler.prefix_cache import PrefixCache
from scheduler.radix_cache import Hit, Node, prefix_to
from scheduler.slots import Slots


@dataclass(slots=True, eq=False)
class Lease:
    """A running request's slot and pages. Whoever opened it must close it."""

    slot: SlotId
    namespace: bytes
    node: Node
    """Where its lock on the cache ends."""
    shared: int
    """Leading pages that belong to the cache."""
    pages: tuple[list[PageId], ...]
    """By page group."""
    capacity: int
    """Tokens for which it has pages."""
    priority: int = 0
    """Of its request; what it uses is kept as long as that is worth (``cache.eviction: priority``)."""
    published: int = 0
    """Leading pages that the cache has been offered: those it shares, or those that it would not take."""
    dropped: int = 0
    """Leading pages of the window group that it holds no longer (``scheduler.hybrid_cache``)."""
    held: Held | None = None
    """Host pages that follow those it shares; loaded before its request does anything."""

    @property
    def reach(self) -> int:
        """Leading pages that its request need not compute."""
        return self.shared + (len(self.held.pages) if self.held else 0)


class KVCache:
    """Pages, slots, and the page table of every slot.

    Keys are token ids (int32) from position 0; ``publish`` and ``close`` take only those that follow the pages
    the lease has already published.
    """

    def __init__(
        self,
        pages: PageAllocator,
        slots: Slots,
        cache: PrefixCache,
        page_size: int,
        pages_per_row: int,
        host: HostTier | None = None,
    ) -> None:
        self.page_size = page_size
        self.tables: tuple[Int32, ...] = (np.zeros((slots.num_slots + 1, pages_per_row), np.int32),)
        """By page group, int32[slots + 1, pages_per_row]: always the pages of the slot's lease, then zeros."""
        self.evicted = 0
        """Pages evicted since the start."""
        self._pages = pages
        self._slots = slots
        self._cache = cache
        self._leases: dict[SlotId, Lease] = {}
        self._host = host

    @property
    def num_pages(self) -> int:
        """Pages in all."""
        return self._pages.num_pages

    @property
    def free_slots(self) -> int:
        """Slots that nobody holds."""
        return len(self._slots)

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
        """Pages in the prefix cache."""
        return self._cache.cached

    def available(self) -> tuple[int, ...]:
        """Pages that could be had now, by group: free, or evictable."""
        return (len(self._pages) + self._cache.evictable,)

    def free(self) -> tuple[int, ...]:
        """Pages that neither a lease nor the prefix cache holds, by group."""
        return (len(self._pages),)

    def peek(self, tokens: Int32, namespace: bytes) -> Hit:
        """What of ``tokens`` is cached. Changes nothing."""
        key = tokens.tobytes()
        hit = self._cache.peek(key, namespace)
        return hit if self._host is None else hit._replace(host=self._host.reach(key, namespace, hit.pages))

    def open(self, tokens: Int32, namespace: bytes, priority: int = 0) -> Lease:
        """Take a slot and lock the longest cached prefix of ``tokens``; what host memory adds is for ``load``."""
        key = tokens.tobytes()
        node, pages = self._cache.match(key, namespace, priority)
        self._cache.lock(node)
        slot, shared = self._slots.take(), len(pages)
        self.tables[0][slot, :shared] = pages
        lease = Lease(slot, namespace, node, shared, (pages,), shared * self.page_size, priority, shared)
        self._leases[slot] = lease
        if self._host is not None:
            lease.held = self._host.hold(key, namespace, shared, priority)
        return lease

    def load(self, lease: Lease) -> None:
        """Bring the host pages that a lease holds to pages of the device, which the cache shares from now on.

        All leases opened in this turn must be open, so that what they share is not evicted to make room.
        """
        host, held = self._host, lease.held
        if host is None or held is None:
            return
        prefix, start = prefix_to(held.node), lease.shared
        present = self._cache.peek(prefix.key, lease.namespace).pages  # more, if another one has just loaded it
        fresh = self._take(len(prefix.pages) - present)
        if fresh:
            host.load(prefix.pages[present:], fresh)
        own = [PageId(0)] * (present - start) + fresh
        key = prefix.key[start * (len(prefix.key) // len(prefix.pages)) :]
        node, taken = self._cache.extend(lease.node, key, own, lease.namespace, lease.priority)
        self._cache.lock(node)
        self._cache.unlock(lease.node)
        host.unlock(held.node)
        lease.node, lease.held = node, None
        lease.pages[0].extend(taken)
        lease.shared = lease.published = len(prefix.pages)
        lease.capacity = lease.shared * self.page_size
        self.tables[0][lease.slot, start : lease.shared] = taken

    def grow(self, lease: Lease, length: int) -> None:
        """Give the lease pages for ``length`` tokens; evicts what that takes. The planner saw to it that it fits."""
        pages = lease.pages[0]
        count = -(-length // self.page_size) - len(pages)
        if count <= 0:
            return
        fresh = self._take(count)
        self.tables[0][lease.slot, len(pages) : len(pages) + count] = fresh
        pages += fresh
        lease.capacity = len(pages) * self.page_size

    def publish(self, lease: Lease, tail: Int32) -> None:
        """Offer the cache the full pages of ``tail``, whose KV has been launched, while the request runs.

        Where the cache already has a page the lease takes the cache's and frees its own: the device works in order,
        so whoever gets the freed page writes after the steps that read it. What the cache does not take stays the
        lease's own.
        """
        full = len(tail) // self.page_size
        if not full:
            return
        old, pages = lease.published, lease.pages[0]
        own = pages[old : old + full]
        key = tail[: full * self.page_size].tobytes()
        node, taken = self._cache.extend(lease.node, key, own, lease.namespace, lease.priority)
        self._cache.lock(node)
        self._cache.unlock(lease.node)
        lease.node, lease.shared, lease.published = node, lease.shared + len(taken), old + full
        given = own[: len(taken)]
        if given != taken:
            self._pages.give(mine for mine, theirs in zip(given, taken, strict=True) if mine != theirs)
            pages[old : old + len(taken)] = taken
            self.tables[0][lease.slot, old : old + len(taken)] = taken
        if self._host is not None:
            self._host.written(node, lease.priority)

    def close(self, lease: Lease, tail: Int32) -> None:
        """Publish what is full of ``tail``, free the rest and the slot. The lease must not be used again."""
        self.publish(lease, tail)
        pages = lease.pages[0]
        self._cache.unlock(lease.node)
        self._pages.give(pages[lease.shared :])
        self.tables[0][lease.slot, : len(pages)] = 0
        del self._leases[lease.slot]
        self._slots.give(lease.slot)
        if self._host is not None:
            self._host.closed(lease.node, lease.priority)

    def reclaimable(self, lease: Lease) -> tuple[int, ...]:
        """Pages that closing the lease would certainly make available, by group. Changes nothing."""
        return (len(lease.pages[0]) - lease.shared + self._cache.reclaimable(lease.node),)

    def use(self) -> tuple[GroupUse, ...]:
        """Who holds the pages, by group."""
        cached, evictable = self._cache.cached, self._cache.evictable
        return (GroupUse(self.num_pages, len(self._pages), evictable, cached - evictable),)

    def flush(self) -> int:
        """Evict everything that is not locked; returns how many pages that was."""
        freed = self._cache.evict(self._cache.evictable)
        self.evicted += len(freed)
        self._pages.give(freed)
        if self._host is not None:
            self._host.flush()
        return len(freed)

    def check(self) -> None:
        """Assert that every page and slot has one owner, and that counters, locks and tables say what is so."""
        nodes = list(self._cache.nodes())
        own = list(self._pages.pages()) + [page for node in nodes for page in node.pages]
        for lease in self._leases.values():
            own += lease.pages[0][lease.shared :]
        assert sorted(own) == list(range(1, self.num_pages + 1)), "a page is lost or has two owners"
        held = sorted([*self._slots.slots(), *self._leases])
        assert held == list(range(1, self._slots.num_slots + 1)), "a slot is lost or has two owners"
        loose = [node for node in nodes if node.refs == 0 and not node.children]
        assert self._cache.queued == len(loose), "a prefix waits for eviction that may not, or one that may does not"
        assert self._cache.cached == sum(len(node.pages) for node in nodes), "the count of cached pages is wrong"
        evictable = sum(len(node.pages) for node in nodes if node.refs == 0)
        assert self._cache.evictable == evictable, "the count of evictable pages is wrong"
        assert self._cache.num_nodes == len(nodes), "the count of nodes is wrong"
        self._check_leases(nodes)
        if self._host is not None:
            self._host.check()

    def _take(self, count: int) -> list[PageId]:
        """Pages, evicted if need be."""
        short = count - len(self._pages)
        if short > 0:
            freed = self._cache.evict(short)
            self.evicted += len(freed)
            self._pages.give(freed)
        return self._pages.take(count)

    def _check_leases(self, nodes: list[Node]) -> None:
        locks: Counter[int] = Counter()
        table = np.zeros_like(self.tables[0])
        for lease in self._leases.values():
            node, path = lease.node, []
            while node.parent is not None:
                locks[node.number] += 1
                path[:0] = node.pages
                node = node.parent
            assert node is self._cache.root, "a lease ends at a node that has left the cache"
            assert path == lease.pages[0][: lease.shared], "a lease and the cache disagree about shared pages"
            assert lease.shared <= lease.published <= len(lease.pages[0]), "a lease has published what it has not"
            assert lease.capacity == len(lease.pages[0]) * self.page_size, "a lease's capacity is wrong"
            table[lease.slot, : len(lease.pages[0])] = lease.pages[0]
        assert all(node.refs == locks[node.number] for node in nodes), "a lock was lost or forgotten"
        assert np.array_equal(table, self.tables[0]), "a page table differs from its lease"
