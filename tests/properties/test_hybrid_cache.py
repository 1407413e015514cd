"""The owner of two page groups against what its leases believe, on pools that starve."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from configs.hybrid import needed_pages
from configs.schema import Eviction
from scheduler.eviction import POLICIES
from scheduler.hybrid_cache import HybridCache
from scheduler.kv_cache import KVCache
from scheduler.page_allocator import PageAllocator
from scheduler.page_use import usage
from scheduler.prefix_cache import prefix_cache
from scheduler.slots import Slots
from scheduler.window_pages import WindowPages
from tests.properties.holder import SLOTS, Holder
from tests.strategies import TWO_TOKENS

# document: M-6, M-12, O-25, O-26


class HybridMachine(RuleBasedStateMachine):
    """Writes go to a memory for each group; what is shared, dropped or taken wrongly shows as a wrong token."""

    @initialize(
        page_size=st.sampled_from([1, 2, 3]),
        num_pages=st.integers(4, 14),
        window_pages=st.integers(2, 8),
        window=st.integers(1, 6),
        reuse=st.sampled_from([True, True, True, False]),
        eviction=st.sampled_from(sorted(POLICIES)),
    )
    def start(
        self, page_size: int, num_pages: int, window_pages: int, window: int, reuse: bool, eviction: Eviction
    ) -> None:
        self.size, self.seen, self.reuse = page_size, window, reuse
        cache = prefix_cache("radix" if reuse else "chunk", eviction, page_size)
        pages = PageAllocator(num_pages)
        full = KVCache(pages, Slots(SLOTS), cache, page_size, num_pages)
        self.window = WindowPages(PageAllocator(window_pages), needed_pages(window, page_size))
        self.kv = HybridCache(full, pages, cache, self.window)
        self.memory: tuple[dict[tuple[int, int], tuple[bytes, int]], ...] = ({}, {})
        self.holders: list[Holder] = []
        self.told: list[tuple[bytes, list[int]]] = []

    def tail(self, holder: Holder) -> np.ndarray:
        return np.array(holder.tokens[holder.lease.published * self.size : holder.written], np.int32)

    @precondition(lambda self: self.kv.free_slots)
    @rule(
        tokens=st.lists(TWO_TOKENS, min_size=1, max_size=12),
        namespace=st.sampled_from([b"", b"\0n"]),
        priority=st.integers(-1, 1),
    )
    def open(self, tokens: list[int], namespace: bytes, priority: int) -> None:
        key = np.array(tokens[:-1], np.int32)
        before = self.kv.available()
        hit = self.kv.peek(key, namespace)
        lease = self.kv.open(key, namespace, priority)
        assert lease.shared == len(lease.pages[0]) == len(lease.pages[1]) == hit.pages
        locked = (hit.unlocked, hit.window_unlocked)
        assert self.kv.available() == tuple(a - b for a, b in zip(before, locked, strict=True))
        self.holders.append(Holder(lease, tokens, lease.capacity))

    @precondition(lambda self: self.kv.free_slots and self.told)
    @rule(data=st.data(), count=st.integers(0, 6))
    def go_on(self, data: st.DataObject, count: int) -> None:
        """A request for what another one wrote, or for the beginning of it, and a bit more."""
        namespace, tokens = data.draw(st.sampled_from(self.told))
        self.open(tokens[: len(tokens) - count] + [0], namespace, 0)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), count=st.integers(1, 9))
    def write(self, data: st.DataObject, count: int) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        end = holder.written + count
        if -(-end // self.size) - len(holder.lease.pages[0]) > min(self.kv.available()):
            return
        self.kv.grow(holder.lease, end)
        assert holder.lease.capacity >= end
        while len(holder.tokens) < end:
            holder.tokens.append(data.draw(TWO_TOKENS))
        for position in range(holder.written, end):
            for pages, memory in zip(holder.lease.pages, self.memory, strict=True):
                place = pages[position // self.size], position % self.size
                memory[place] = (holder.lease.namespace, holder.tokens[position])
        holder.written = end

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        lease = holder.lease
        self.kv.publish(lease, self.tail(holder))
        assert lease.published == holder.written // self.size
        assert lease.shared == (lease.published if self.reuse else 0)
        assert lease.dropped == max(0, lease.published - needed_pages(self.seen, self.size))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.told.append((holder.lease.namespace, list(holder.tokens)))
        before, promised = self.kv.available(), self.kv.reclaimable(holder.lease)
        self.kv.close(holder.lease, self.tail(holder))
        after = self.kv.available()
        assert all(a >= b + c for a, b, c in zip(after, before, promised, strict=True))
        key = np.array(holder.tokens[: holder.written], np.int32)
        full = holder.written // self.size if self.reuse else 0
        # pages fresh from a lease are the last to go, so the window before the end of what it wrote is there
        assert self.kv.peek(key, holder.lease.namespace).pages == full

    @rule()
    def flush(self) -> None:
        self.kv.flush()
        for group, (total, available) in enumerate(zip(self.totals(), self.kv.available(), strict=True)):
            held = sum(len(set(holder.lease.pages[group]) - {0}) for holder in self.holders)
            assert available >= total - held
        assert self.kv.available() == self.kv.free()

    def totals(self) -> list[int]:
        return [use.total for use in self.kv.use()]

    @invariant()
    def every_lease_reads_what_it_wrote_and_what_its_next_token_sees(self) -> None:
        self.kv.check()
        for holder in self.holders:
            expected = [(holder.lease.namespace, token) for token in holder.tokens[: holder.written]]
            for table, memory, oldest in zip(
                self.kv.tables, self.memory, (0, max(0, holder.written + 1 - self.seen)), strict=True
            ):
                pages = table[holder.lease.slot]
                places = [(int(pages[p // self.size]), p % self.size) for p in range(oldest, holder.written)]
                assert all(page for page, _ in places)
                assert [memory[place] for place in places] == expected[oldest:]

    @invariant()
    def usage_is_the_larger_share(self) -> None:
        shares = [(total - a) / total for a, total in zip(self.kv.available(), self.totals(), strict=True)]
        assert usage(self.kv.use()) == max(shares) <= 1
        if not self.holders:
            assert usage(self.kv.use()) == 0
            assert not any(use.protected for use in self.kv.use())

    @invariant()
    def while_no_window_page_was_evicted_all_that_is_cached_can_be_gone_on_from(self) -> None:
        if not self.window.evicted:
            assert self.window.use().evictable + self.window.use().protected == self.kv.cached


HybridMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestHybridCache = HybridMachine.TestCase
