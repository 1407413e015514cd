"""Adapters, keys and salts keep caches apart: what one of them holds is never seen, locked or evicted by another."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.hybrid import needed_pages
from scheduler.copies import Chain
from scheduler.file_storage import page_names
from scheduler.hybrid_cache import HybridCache
from scheduler.kv_cache import KVCache, Lease
from scheduler.page_allocator import PageAllocator
from scheduler.page_owner import PageOwner
from scheduler.prefix_cache import adapter_of, namespace
from scheduler.radix_cache import RadixCache
from scheduler.slots import Slots
from scheduler.window_pages import WindowPages
from tests.strategies import TWO_TOKENS

# document: O-26, O-38

PARTS = st.tuples(*[st.none() | st.text(max_size=3)] * 3)
PAGE_SIZE, PAGES = 2, 64
NAMESPACES = [namespace(*parts) for parts in product([None, "a", "b"], [None, "a"], [None, "a"])]
STEP = st.tuples(
    st.sampled_from(NAMESPACES[:6]), st.lists(TWO_TOKENS, min_size=1, max_size=8), st.integers(0, 8), st.booleans()
)


@given(one=PARTS, other=PARTS)
def test_requests_share_a_namespace_only_if_adapter_key_and_salt_are_the_same(
    one: tuple[str | None, ...], other: tuple[str | None, ...]
) -> None:
    assert (namespace(*one) == namespace(*other)) == (one == other)
    assert adapter_of(namespace(*one)) == one[0]


def owner_of(window: int) -> tuple[PageOwner, RadixCache]:
    """An owner of pages, of two groups if there is a window, and its tree."""
    pages, tree = PageAllocator(PAGES), RadixCache(PAGE_SIZE)
    full = KVCache(pages, Slots(4), tree, PAGE_SIZE, PAGES)
    if not window:
        return full, tree
    beside = WindowPages(PageAllocator(PAGES), needed_pages(window, PAGE_SIZE))
    return HybridCache(full, pages, tree, beside), tree


def serve(owner: PageOwner, space: bytes, tokens: list[int], more: int) -> tuple[Lease, int]:
    """A request that computes ``tokens`` and ``more``; its lease, and what it found."""
    lease = owner.open(np.array(tokens[:-1], np.int32), space)
    found = lease.shared
    owner.grow(lease, len(tokens) + more)
    owner.publish(lease, np.array([*tokens, *[0] * more][found * PAGE_SIZE :], np.int32))
    return lease, found


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(STEP, min_size=1, max_size=8), window=st.sampled_from([0, 0, 3]), mine=st.sampled_from([0, 1, 4]))
def test_what_a_request_finds_does_not_depend_on_requests_of_other_namespaces(
    steps: list[tuple[bytes, list[int], int, bool]], window: int, mine: int
) -> None:
    together, tree = owner_of(window)
    alone, _ = owner_of(window)
    by_page: dict[int, bytes] = {}
    for space, tokens, more, _ in steps:
        lease, found = serve(together, space, tokens, more)
        for page in lease.pages[0]:
            assert by_page.setdefault(page, space) == space, "two namespaces share a page"
        together.close(lease, np.zeros(0, np.int32))
        cached = {page for node in tree.nodes() for page in node.pages}
        by_page = {page: space for page, space in by_page.items() if page in cached}
        if space == NAMESPACES[mine]:
            lease, expected = serve(alone, space, tokens, more)
            alone.close(lease, np.zeros(0, np.int32))
            assert found == expected
        together.check()


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(STEP, min_size=1, max_size=4), window=st.sampled_from([0, 0, 3]))
def test_a_lock_of_one_namespace_keeps_no_page_of_another(
    steps: list[tuple[bytes, list[int], int, bool]], window: int
) -> None:
    owner, _ = owner_of(window)
    open_: list[tuple[bytes, list[int], Lease]] = []
    for space, tokens, more, stays in steps:
        lease, _ = serve(owner, space, tokens, more)
        said = [*tokens, *[0] * more]
        if stays:
            open_.append((space, said, lease))
        else:
            owner.close(lease, np.zeros(0, np.int32))
    owner.flush()
    for space in {space for space, *_ in steps}:
        held = [(said, lease) for its, said, lease in open_ if its == space]
        for said in (said for _, said, _ in open_):
            found = owner.peek(np.array(said, np.int32), space).pages
            if not window:
                shared = [common(said, other) for other, _ in held]
                assert found == max(shared, default=0)
            elif not held:
                assert found == 0
    for _, said, lease in open_:
        assert lease.shared == len(said) // PAGE_SIZE
    owner.check()


def common(one: list[int], other: list[int]) -> int:
    """Full pages that two token lists share from their beginning."""
    count = 0
    while (count + 1) * PAGE_SIZE <= min(len(one), len(other)) and (
        one[count * PAGE_SIZE : (count + 1) * PAGE_SIZE] == other[count * PAGE_SIZE : (count + 1) * PAGE_SIZE]
    ):
        count += 1
    return count


@given(tokens=st.lists(TWO_TOKENS, min_size=2, max_size=8), one=PARTS, other=PARTS)
def test_no_stored_page_has_the_name_of_a_page_of_another_namespace(
    tokens: list[int], one: tuple[str | None, ...], other: tuple[str | None, ...]
) -> None:
    key = np.array(tokens, np.int32).tobytes()
    names = [set(page_names(b"model", Chain(namespace(*parts), key, 0), 4)) for parts in (one, other)]
    assert len(names[0]) == len(tokens)
    assert names[0] == names[1] if one == other else names[0].isdisjoint(names[1])
