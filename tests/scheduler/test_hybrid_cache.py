"""Corners of the two page groups, one at a time."""

import numpy as np
import pytest

from configs.hybrid import needed_pages
from scheduler.hybrid_cache import HybridCache
from scheduler.invariants import leaks
from scheduler.kv_cache import KVCache, Lease
from scheduler.page_allocator import PageAllocator
from scheduler.page_use import GroupUse, idle_fields, usage
from scheduler.prefix_cache import prefix_cache
from scheduler.radix_cache import Hit
from scheduler.roster import Roster
from scheduler.slots import Slots
from scheduler.window_pages import WindowPages

# document: M-6, M-12, O-26

SIZE, WINDOW = 2, 4
NEEDED = needed_pages(WINDOW, SIZE)


def owner(num_pages: int, window_pages: int) -> HybridCache:
    pages, cache = PageAllocator(num_pages), prefix_cache("radix", "lru", SIZE)
    full = KVCache(pages, Slots(4), cache, SIZE, 16)
    return HybridCache(full, pages, cache, WindowPages(PageAllocator(window_pages), NEEDED))


def text(first: int, length: int) -> np.ndarray:
    return np.arange(first, first + length, dtype=np.int32)


def write(kv: HybridCache, tokens: np.ndarray) -> Lease:
    """A lease whose request has computed ``tokens``, page by page."""
    lease = kv.open(tokens, b"")
    for end in range(lease.capacity + SIZE, len(tokens) + 1, SIZE):
        kv.grow(lease, end)
        kv.publish(lease, tokens[lease.published * SIZE : end])
        kv.check()
    return lease


def test_a_running_request_keeps_the_pages_that_its_next_token_sees() -> None:
    kv = owner(20, 6)
    lease = write(kv, text(0, 16))
    assert NEEDED == 2
    assert [bool(page) for page in lease.pages[1]] == [False] * 6 + [True] * 2
    assert kv.tables[1][lease.slot, :6].tolist() == [0] * 6
    assert all(lease.pages[0])
    assert kv.use() == (GroupUse(20, 12, 0, 8), GroupUse(6, 0, 4, 2))


def test_what_lost_its_window_cannot_be_gone_on_from_and_what_is_before_it_still_can() -> None:
    kv = owner(20, 5)
    first = text(0, 10)
    kv.close(write(kv, first), first[:0])
    assert kv.peek(first, b"") == Hit(5, 5, 2)
    kv.close(write(kv, text(100, 4)), text(0, 0))
    # two of the five window pages went, those at the beginning
    assert kv.peek(first, b"").pages == 5
    assert kv.peek(first[:8], b"").pages == 4
    assert kv.peek(first[:6], b"").pages == 0
    kv.close(write(kv, text(200, 4)), text(0, 0))
    assert kv.peek(first, b"").pages == 0
    assert kv.cached == 9


def test_computing_a_prefix_again_makes_it_whole_again_and_takes_no_full_pages_twice() -> None:
    kv = owner(20, 5)
    first = text(0, 10)
    for tokens in (first, text(100, 10), first):
        kv.close(write(kv, tokens), tokens[:0])
    assert kv.peek(first, b"").pages == 5
    assert kv.cached == 10
    assert kv.free() == (10, 0)


def test_full_pages_take_their_window_pages_with_them() -> None:
    kv = owner(6, 8)
    kv.close(write(kv, text(0, 12)), text(0, 0))
    kv.close(write(kv, text(100, 8)), text(0, 0))
    assert kv.evicted == 4
    assert [use.evictable for use in kv.use()] == [6, 6]
    assert kv.flush() == 6
    assert kv.free() == (6, 8)


def test_two_requests_at_one_prefix_hold_one_window_until_both_have_gone() -> None:
    kv = owner(20, 6)
    tokens = text(0, 8)
    one, other = write(kv, tokens), write(kv, tokens)
    assert one.pages[1][2:] == other.pages[1][2:]
    assert kv.reclaimable(one) == (0, 0)
    kv.close(one, tokens[:0])
    assert kv.reclaimable(other) == (4, 2)
    assert kv.use()[1].protected == 2
    kv.close(other, tokens[:0])
    assert usage(kv.use()) == 0


@pytest.mark.parametrize(("full", "window", "share"), [(8, 1, 0.4), (2, 6, 0.75)])
def test_usage_is_that_of_the_fuller_group(full: int, window: int, share: float) -> None:
    assert usage((GroupUse(20, 12, 8 - full, full), GroupUse(8, 8 - window, 0, window))) == share


def test_the_fields_of_the_idle_check_are_in_tokens() -> None:
    kv = owner(20, 6)
    kv.close(write(kv, text(0, 8)), text(0, 0))
    assert idle_fields(kv.use(), SIZE) == {
        "full_tokens_per_layer": 40,
        "full_available_size": 32,
        "full_evictable_size": 8,
        "full_protected_size": 0,
        "swa_tokens_per_layer": 12,
        "swa_available_size": 4,
        "swa_evictable_size": 8,
        "swa_protected_size": 0,
    }


def test_a_page_of_either_group_that_is_in_use_while_nothing_runs_is_a_leak() -> None:
    kv = owner(20, 6)
    write(kv, text(0, 8))
    pages, slots = leaks(Roster(kv))
    assert (pages.pool, slots.pool) == ("tokens", "slots")
    assert "full_tokens_per_layer=40, full_available_size=32, full_evictable_size=" in pages.text
    assert "swa_tokens_per_layer=12, swa_available_size=" in pages.text


def test_a_window_page_alone_that_nobody_gives_back_is_a_leak() -> None:
    free = PageAllocator(6)
    pages, cache = PageAllocator(20), prefix_cache("radix", "lru", SIZE)
    full = KVCache(pages, Slots(4), cache, SIZE, 16)
    roster = Roster(HybridCache(full, pages, cache, WindowPages(free, NEEDED)))
    assert leaks(roster) == []
    free.take(1)
    [leak] = leaks(roster)
    assert "token_to_kv_pool_allocator memory leak detected!" in leak.text
    assert "full_available_size=40" in leak.text
    assert "swa_available_size=10" in leak.text
