"""The owner of pages and slots against what its leases believe, on pools that starve."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from configs.schema import Eviction
from scheduler.eviction import POLICIES
from scheduler.kv_cache import KVCache
from scheduler.page_allocator import PageAllocator
from scheduler.prefix_cache import prefix_cache
from scheduler.slots import Slots
from tests.properties.holder import SLOTS, Holder
from tests.strategies import TWO_TOKENS

# document: M-11, M-13, O-25


class KVMachine(RuleBasedStateMachine):
    """Writes go to ``memory``; a page that is shared wrongly or taken too early shows as a wrong token."""

    @initialize(
        page_size=st.sampled_from([1, 2, 3]),
        num_pages=st.integers(3, 14),
        reuse=st.booleans(),
        eviction=st.sampled_from(sorted(POLICIES)),
    )
    def start(self, page_size: int, num_pages: int, reuse: bool, eviction: Eviction) -> None:
        self.size = page_size
        self.reuse = reuse
        cache = prefix_cache("radix" if reuse else "chunk", eviction, page_size)
        self.kv = KVCache(PageAllocator(num_pages), Slots(SLOTS), cache, page_size, num_pages)
        self.memory: dict[tuple[int, int], tuple[bytes, int]] = {}
        self.holders: list[Holder] = []

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
        assert lease.shared == len(lease.pages[0]) == hit.pages
        assert self.kv.available()[0] == before[0] - hit.unlocked
        self.holders.append(Holder(lease, tokens, lease.capacity))

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), count=st.integers(1, 6))
    def write(self, data: st.DataObject, count: int) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        end = holder.written + count
        needed = -(-end // self.size) - len(holder.lease.pages[0])
        if needed > self.kv.available()[0]:
            return
        self.kv.grow(holder.lease, end)
        while len(holder.tokens) < end:
            holder.tokens.append(data.draw(TWO_TOKENS))
        for position in range(holder.written, end):
            page = holder.lease.pages[0][position // self.size]
            self.memory[page, position % self.size] = (holder.lease.namespace, holder.tokens[position])
        holder.written = end

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        self.kv.publish(holder.lease, self.tail(holder))
        assert holder.lease.published == holder.written // self.size
        assert holder.lease.shared == (holder.lease.published if self.reuse else 0)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        before, [promised] = self.kv.available()[0], self.kv.reclaimable(holder.lease)
        self.kv.close(holder.lease, self.tail(holder))
        assert self.kv.available()[0] >= before + promised
        key = np.array(holder.tokens[: holder.written], np.int32)
        full = holder.written // self.size if self.reuse else 0
        assert self.kv.peek(key, holder.lease.namespace).pages == full

    @rule()
    def flush(self) -> None:
        self.kv.flush()
        held = sum(len(set(holder.lease.pages[0])) for holder in self.holders)
        assert self.kv.available()[0] >= self.kv.num_pages - held

    @invariant()
    def every_lease_reads_what_it_wrote(self) -> None:
        self.kv.check()
        for holder in self.holders:
            pages = self.kv.tables[0][holder.lease.slot]
            read = [self.memory[int(pages[p // self.size]), p % self.size] for p in range(holder.written)]
            assert read == [(holder.lease.namespace, token) for token in holder.tokens[: holder.written]]


KVMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestKVCache = KVMachine.TestCase
