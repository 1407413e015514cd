"""What the engine asks of the owner of pages and slots: one page group (``KVCache``) or two (``HybridCache``)."""

from typing import Protocol

from model.interface import Int32
from scheduler.kv_cache import Lease
from scheduler.page_use import GroupUse
from scheduler.radix_cache import Hit, Node


class PageOwner(Protocol):
    """Every page and every slot is free, cached, or a lease's.

    Keys are token ids (int32) from position 0; ``publish`` and ``close`` take only those that follow the pages the
    lease has already published. Figures without a group are of the full pages, which every request needs most of.
    """

    page_size: int
    tables: tuple[Int32, ...]
    """By page group, int32[slots + 1, pages_per_row]."""
    evicted: int
    """Pages evicted since the start."""

    @property
    def root(self) -> Node:
        """The empty prefix of the cache."""
        ...

    @property
    def num_pages(self) -> int:
        """Pages in all."""
        ...

    @property
    def free_slots(self) -> int:
        """Slots that nobody holds."""
        ...

    @property
    def num_leases(self) -> int:
        """Leases that are open."""
        ...

    @property
    def cached(self) -> int:
        """Pages in the prefix cache."""
        ...

    def available(self) -> tuple[int, ...]:
        """Pages that could be had now, by group: free, or evictable."""
        ...

    def free(self) -> tuple[int, ...]:
        """Pages that neither a lease nor the prefix cache holds, by group."""
        ...

    def use(self) -> tuple[GroupUse, ...]:
        """Who holds the pages, by group."""
        ...

    def peek(self, tokens: Int32, namespace: bytes) -> Hit:
        """What of ``tokens`` is cached. Changes nothing."""
        ...

    def open(self, tokens: Int32, namespace: bytes, priority: int = 0) -> Lease:
        """Take a slot and lock the longest cached prefix of ``tokens``."""
        ...

    def grow(self, lease: Lease, length: int) -> None:
        """Give the lease pages for ``length`` tokens; evicts what that takes. The planner saw to it that it fits."""
        ...

    def publish(self, lease: Lease, tail: Int32) -> None:
        """Offer the cache the full pages of ``tail``, whose KV has been launched, while the request runs."""
        ...

    def close(self, lease: Lease, tail: Int32) -> None:
        """Publish what is full of ``tail``, free the rest and the slot. The lease must not be used again."""
        ...

    def reclaimable(self, lease: Lease) -> tuple[int, ...]:
        """Pages that closing the lease would certainly make available, by group. Changes nothing."""
        ...

    def flush(self) -> int:
        """Evict everything that is not locked; returns how many pages that was."""
        ...

    def check(self) -> None:
        """Assert that every page and slot has one owner, and that counters, locks and tables say what is so."""
        ...
