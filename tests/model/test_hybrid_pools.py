"""Gemma 3 with a page group for its sliding layers computes what it computes with one group for all."""

import dataclasses

import numpy as np
import pytest

from configs.hybrid import needed_pages
from model.device_state import allocate, state_shapes
from model.interface import StepInput
from scheduler.hybrid_cache import HybridCache
from scheduler.kv_cache import KVCache
from scheduler.page_allocator import PageAllocator
from scheduler.prefix_cache import prefix_cache
from scheduler.slots import Slots
from scheduler.window_pages import WindowPages
from tests.model.harness import NUM_PAGES, PAGE_SIZE, Bench, Row, decode, golden, mixed, tiny_bench

# document: M-6, O-26

WINDOW_PAGES = 8
"""A window of ten tokens needs three of them, a chunk of sixteen tokens four."""


@pytest.fixture(scope="module")
def hybrid() -> Bench:
    return open_hybrid(1)


def open_hybrid(tensor: int) -> Bench:
    bench = tiny_bench("gemma3", tensor)
    shapes = dataclasses.replace(bench.shapes, window=bench.model.spec.sliding_window)
    state = allocate(state_shapes(bench.model, shapes, NUM_PAGES, WINDOW_PAGES + 1))
    return dataclasses.replace(bench, shapes=shapes, state=state)


def owner(bench: Bench, family: str) -> HybridCache:
    cache, pages = prefix_cache(family, "lru", PAGE_SIZE), PageAllocator(NUM_PAGES - 1)
    full = KVCache(pages, Slots(4), cache, PAGE_SIZE, bench.shapes.pages_per_row)
    return HybridCache(
        full, pages, cache, WindowPages(PageAllocator(WINDOW_PAGES), needed_pages(bench.shapes.window, PAGE_SIZE))
    )


def with_window(step: StepInput, kv: HybridCache, slot: int, row: int) -> StepInput:
    """The step with a table for each group, its only row taken from the owner."""
    tables = tuple(np.zeros_like(step.page_tables[0]) for _ in kv.tables)
    for table, of_slots in zip(tables, kv.tables, strict=True):
        table[row] = of_slots[slot]
    return dataclasses.replace(step, page_tables=tables)


def run(bench: Bench, kv: HybridCache, ids: np.ndarray, end_of_prompt: int) -> np.ndarray:
    """Logits of all tokens that are not cached: the prompt in pieces of up to sixteen, the rest one by one."""
    lease = kv.open(ids[: end_of_prompt - 1].astype(np.int32), b"")
    no_pages = np.zeros(0, np.int32)
    at, out = lease.capacity, []
    while at < len(ids):
        end = min(at + 16, end_of_prompt) if at < end_of_prompt else at + 1
        kv.grow(lease, end)
        row = Row(ids, at, end, no_pages)
        if end - at > 1:
            step, (where,) = mixed(bench.shapes, 32, [], [row])
            row_number = bench.shapes.rows(step.family, 32) - bench.shapes.max_pieces
        else:
            step, where, row_number = decode(bench.shapes, 2, [row]), slice(0, 1), 0
        out.append(bench.logits(with_window(step, kv, lease.slot, row_number))[where])
        at = end
        kv.publish(lease, ids[lease.published * PAGE_SIZE : at].astype(np.int32))
        kv.check()
    assert lease.dropped, "the text is longer than the window"
    kv.close(lease, ids[lease.published * PAGE_SIZE :].astype(np.int32))
    return np.concatenate(out)


@pytest.mark.parametrize("family", ["radix", "chunk"])
def test_a_text_longer_than_the_window_has_the_reference_logits_in_pools_too_small_for_it(
    hybrid: Bench, family: str
) -> None:
    ids, expected = golden("gemma3")
    kv, scale = owner(hybrid, family), np.abs(expected).max()
    assert len(ids) > WINDOW_PAGES * PAGE_SIZE
    for end_of_prompt in (len(ids) * 2 // 3, len(ids) - 5):
        ours = run(hybrid, kv, ids, end_of_prompt)
        # the second time the beginning comes from the cache
        assert np.abs(ours - expected[-len(ours) :]).max() <= 2e-5 * scale
        assert (len(ours) < len(ids)) == (family == "radix" and end_of_prompt == len(ids) - 5)


def test_on_two_devices_the_logits_are_the_reference_ones_too() -> None:
    ids, expected = golden("gemma3")
    bench = open_hybrid(2)
    ours = run(bench, owner(bench, "radix"), ids, len(ids) * 2 // 3)
    assert np.abs(ours - expected).max() <= 2e-5 * np.abs(expected).max()


def test_only_sliding_layers_have_the_smaller_pool(hybrid: Bench) -> None:
    sizes = [layer.shape[0] for layer in hybrid.state.pool.k]
    assert sizes == [WINDOW_PAGES + 1 if sliding else NUM_PAGES for sliding in hybrid.model.spec.sliding_layers]
