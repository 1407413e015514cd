"""The prefix tree against a dictionary of prefixes, page by page."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.interface import PageId
from scheduler.radix_cache import Node, RadixCache
from tests.strategies import TWO_TOKENS

# document: O-26

Prefix = tuple[bytes, tuple[int, ...]]
PROMPTS = st.lists(TWO_TOKENS, max_size=12)
NAMESPACES = st.sampled_from([b"", b"\0", b"\0a"])


def as_key(tokens: list[int] | tuple[int, ...]) -> bytes:
    return np.array(tokens, np.int32).tobytes()


class RadixMachine(RuleBasedStateMachine):
    """Holders lock prefixes, extend them and let go; pages are evicted in between."""

    @initialize(page_size=st.sampled_from([1, 2, 3]))
    def start(self, page_size: int) -> None:
        self.size = page_size
        self.tree = RadixCache(page_size)
        self.pages: dict[Prefix, int] = {}
        self.touched: dict[Prefix, int] = {}
        self.clock = 0
        self.fresh = 0
        self.holders: list[tuple[Prefix, Node]] = []

    def prefixes(self, namespace: bytes, tokens: list[int] | tuple[int, ...]) -> list[Prefix]:
        ends = range(self.size, len(tokens) + 1, self.size)
        return [(namespace, tuple(tokens[:end])) for end in ends]

    def cached(self, namespace: bytes, tokens: list[int] | tuple[int, ...]) -> list[Prefix]:
        return [prefix for prefix in self.prefixes(namespace, tokens) if prefix in self.pages]

    def locked(self) -> set[Prefix]:
        return {prefix for (namespace, tokens), _ in self.holders for prefix in self.prefixes(namespace, tokens)}

    def touch(self, prefixes: list[Prefix]) -> None:
        self.clock += 1
        self.touched.update(dict.fromkeys(prefixes, self.clock))

    @rule(tokens=PROMPTS, namespace=NAMESPACES)
    def hold(self, tokens: list[int], namespace: bytes) -> None:
        expected = self.cached(namespace, tokens)
        hit = self.tree.peek(as_key(tokens), namespace)
        assert hit == (len(expected), len(set(expected) - self.locked()))
        node, pages = self.tree.match(as_key(tokens), namespace)
        assert pages == [self.pages[prefix] for prefix in expected]
        self.touch(expected)
        self.tree.lock(node)
        self.holders.append((expected[-1] if expected else (namespace, ()), node))

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), tail=PROMPTS)
    def extend(self, data: st.DataObject, tail: list[int]) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        (namespace, held), node = self.holders[index]
        tail = tail[: len(tail) // self.size * self.size]
        whole = self.prefixes(namespace, held + tuple(tail))[len(held) // self.size :]
        offered = list(range(self.fresh + 1, self.fresh + 1 + len(whole)))
        self.fresh += len(whole)
        end, pages = self.tree.extend(node, as_key(tail), [PageId(page) for page in offered], namespace)
        for prefix, page in zip(whole, offered, strict=True):
            self.pages.setdefault(prefix, page)
        assert pages == [self.pages[prefix] for prefix in whole]
        self.touch(whole)
        self.tree.lock(end)
        self.tree.unlock(node)
        self.holders[index] = ((namespace, held + tuple(tail)), end)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        before = self.locked()
        _, node = self.holders.pop(index)
        assert self.tree.reclaimable(node) == len(before - self.locked())
        self.tree.unlock(node)

    @rule(count=st.integers(0, 12))
    def evict(self, count: int) -> None:
        locked, expected = self.locked(), list[int]()
        while len(expected) < count and (loose := self.loose_leaves(locked)):
            oldest = min(loose, key=lambda prefix: self.touched[prefix])
            expected.append(self.pages.pop(oldest))
        assert sorted(self.tree.evict(count)) == sorted(expected)

    def loose_leaves(self, locked: set[Prefix]) -> list[Prefix]:
        parents = {(namespace, tokens[: -self.size]) for namespace, tokens in self.pages}
        return [prefix for prefix in self.pages if prefix not in parents and prefix not in locked]

    @invariant()
    def counters_equal_a_recount(self) -> None:
        nodes = list(self.tree.nodes())
        assert self.tree.num_nodes == len(nodes)
        assert self.tree.cached == len(self.pages) == sum(len(node.pages) for node in nodes)
        assert self.tree.evictable == len(set(self.pages) - self.locked())


RadixMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRadixCache = RadixMachine.TestCase


def test_peeking_changes_nothing_not_even_what_is_evicted_first() -> None:
    tree = RadixCache(1)
    for page, token in enumerate((5, 6), start=1):
        tree.extend(tree.root, as_key([token]), [PageId(page)], b"")
    for _ in range(3):
        tree.peek(as_key([5]), b"")
    assert tree.evict(1) == [1]


def test_an_edge_that_only_one_holder_extends_stays_one_node() -> None:
    tree = RadixCache(2)
    node = tree.extend(tree.root, as_key([0, 1]), [PageId(1)], b"").node
    tree.lock(node)
    for page in range(2, 9):
        assert tree.extend(node, as_key([page, page]), [PageId(page)], b"").node is node
    assert tree.num_nodes == 1


def test_the_eviction_queue_stays_as_small_as_the_tree() -> None:
    tree = RadixCache(1)
    tree.extend(tree.root, as_key([1]), [PageId(1)], b"")
    for _ in range(5_000):
        node = tree.match(as_key([1]), b"").node
        tree.lock(node)
        tree.unlock(node)
    assert tree.queued < 100
