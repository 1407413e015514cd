"""The prefix tree under every eviction policy against a dictionary of prefixes, page by page."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from configs.schema import Eviction
from model.interface import PageId
from scheduler.eviction import POLICIES
from scheduler.radix_cache import Node, RadixCache
from tests.strategies import TWO_TOKENS

# document: O-26

Prefix = tuple[bytes, tuple[int, ...]]
PROMPTS = st.lists(TWO_TOKENS, max_size=8)
PRIORITIES = st.integers(-1, 1)
NAMESPACES = st.sampled_from([b"", b"\0", b"\0a"])


@dataclass
class Page:
    """What the model knows of a cached page."""

    page: int
    born: int
    used: int
    users: int
    priority: int


# the policies once more, in the words of SGLang: the smallest goes first
MODEL: dict[Eviction, Callable[[Page], tuple[int, ...]]] = {
    "lru": lambda page: (page.used,),
    "lfu": lambda page: (page.users, page.used),
    "slru": lambda page: (page.users >= 2, page.used),
    "fifo": lambda page: (page.born,),
    "mru": lambda page: (-page.used,),
    "filo": lambda page: (-page.born,),
    "priority": lambda page: (page.priority, page.used),
}


@dataclass(eq=False)
class Holder:
    """A request: the prefix that it has locked, and where that ends."""

    prefix: Prefix
    node: Node
    priority: int


def as_key(tokens: list[int] | tuple[int, ...]) -> bytes:
    return np.array(tokens, np.int32).tobytes()


class RadixMachine(RuleBasedStateMachine):
    """Holders lock prefixes, extend them and let go; pages are evicted in between."""

    @initialize(page_size=st.sampled_from([1, 2, 3]), eviction=st.sampled_from(sorted(MODEL)))
    def start(self, page_size: int, eviction: Eviction) -> None:
        self.size = page_size
        self.rank = MODEL[eviction]
        self.tree = RadixCache(page_size, POLICIES[eviction])
        self.pages: dict[Prefix, Page] = {}
        self.clock = 0
        self.fresh = 0
        self.holders: list[Holder] = []

    def prefixes(self, namespace: bytes, tokens: list[int] | tuple[int, ...]) -> list[Prefix]:
        ends = range(self.size, len(tokens) + 1, self.size)
        return [(namespace, tuple(tokens[:end])) for end in ends]

    def parent(self, prefix: Prefix) -> Prefix:
        return prefix[0], prefix[1][: -self.size]

    def locked(self) -> set[Prefix]:
        return {prefix for holder in self.holders for prefix in self.prefixes(*holder.prefix)}

    def use(self, prefixes: list[Prefix], priority: int) -> None:
        """One more request uses them."""
        for prefix in prefixes:
            page = self.pages[prefix]
            page.users += 1
            page.priority = max(page.priority, priority)

    def touch(self, prefixes: list[Prefix]) -> None:
        self.clock += 1
        for prefix in prefixes:
            self.pages[prefix].used = self.clock

    @rule(tokens=PROMPTS, namespace=NAMESPACES, priority=PRIORITIES)
    def begin(self, tokens: list[int], namespace: bytes, priority: int) -> None:
        self.hold(tokens, namespace, priority)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), tail=PROMPTS)
    def go_on(self, data: st.DataObject, tail: list[int]) -> None:
        self.extend(data.draw(st.sampled_from(self.holders)), tail)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.release(data.draw(st.sampled_from(self.holders)))

    @rule(tokens=PROMPTS, namespace=NAMESPACES, priority=PRIORITIES)
    def serve(self, tokens: list[int], namespace: bytes, priority: int) -> None:
        """A whole request."""
        holder = self.hold(tokens, namespace, priority)
        self.extend(holder, tokens[len(holder.prefix[1]) :])
        self.release(holder)

    def hold(self, tokens: list[int], namespace: bytes, priority: int) -> Holder:
        expected = [prefix for prefix in self.prefixes(namespace, tokens) if prefix in self.pages]
        hit = self.tree.peek(as_key(tokens), namespace)
        assert (hit.pages, hit.unlocked) == (len(expected), len(set(expected) - self.locked()))
        assert self.tree.find(as_key(tokens), namespace) == [self.pages[prefix].page for prefix in expected]
        node, pages = self.tree.match(as_key(tokens), namespace, priority)
        assert pages == [self.pages[prefix].page for prefix in expected]
        self.use(expected, priority)
        self.touch(expected)
        self.tree.lock(node)
        self.holders.append(Holder(expected[-1] if expected else (namespace, ()), node, priority))
        return self.holders[-1]

    def extend(self, holder: Holder, tail: list[int]) -> None:
        (namespace, held), node = holder.prefix, holder.node
        tail = tail[: len(tail) // self.size * self.size]
        before = self.prefixes(namespace, held)
        whole = self.prefixes(namespace, held + tuple(tail))[len(held) // self.size :]
        offered = list(range(self.fresh + 1, self.fresh + 1 + len(whole)))
        self.fresh += len(whole)
        end, pages = self.tree.extend(
            node, as_key(tail), [PageId(page) for page in offered], namespace, holder.priority
        )
        present = [prefix for prefix in whole if prefix in self.pages]
        self.use(present, holder.priority)
        alone = bool(before) and not present and self.pages[before[-1]].users == 1
        born = self.pages[before[-1]].born if alone else self.clock + 1
        for prefix, page in list(zip(whole, offered, strict=True))[len(present) :]:
            self.pages[prefix] = Page(page, born, 0, 1, holder.priority)
        assert pages == [self.pages[prefix].page for prefix in whole]
        self.touch(before + whole)
        self.tree.lock(end)
        self.tree.unlock(node)
        holder.prefix, holder.node = (namespace, held + tuple(tail)), end

    def release(self, holder: Holder) -> None:
        before = self.locked()
        self.holders.remove(holder)
        assert self.tree.reclaimable(holder.node) == len(before - self.locked())
        self.tree.unlock(holder.node)

    @rule(count=st.integers(0, 12))
    def evict(self, count: int) -> None:
        expected = [page for _ in range(count) for page in self.next_to_go()]
        assert sorted(self.tree.evict(count)) == sorted(expected)

    @rule(count=st.integers(1, 3))
    def evict_one_by_one(self, count: int) -> None:
        for _ in range(count):
            assert self.tree.evict(1) == self.next_to_go()

    def teardown(self) -> None:
        """All go, and then the cache, page by page in the order of the policy."""
        for holder in list(self.holders):
            self.release(holder)
        for _ in range(len(self.pages)):
            assert self.tree.evict(1) == self.next_to_go()
        assert list(self.tree.nodes()) == []

    def next_to_go(self) -> list[int]:
        """The page that the policy takes next from the model, if any may go."""
        loose = self.loose_leaves(self.locked())
        if not loose:
            return []
        first = min(loose, key=lambda prefix: self.rank(self.pages[prefix]))
        return [self.pages.pop(first).page]

    def loose_leaves(self, locked: set[Prefix]) -> list[Prefix]:
        parents = {self.parent(prefix) for prefix in self.pages}
        return [prefix for prefix in self.pages if prefix not in parents and prefix not in locked]

    @invariant()
    def counters_equal_a_recount(self) -> None:
        nodes = list(self.tree.nodes())
        assert self.tree.num_nodes == len(nodes)
        assert self.tree.cached == len(self.pages) == sum(len(node.pages) for node in nodes)
        assert self.tree.evictable == len(set(self.pages) - self.locked())
        assert self.tree.queued == sum(node.refs == 0 and not node.children for node in nodes)


RadixMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=30, deadline=None)
TestRadixCache = RadixMachine.TestCase


def test_peeking_changes_nothing_not_even_what_is_evicted_first() -> None:
    tree = RadixCache(1)
    for page, token in enumerate((5, 6), start=1):
        tree.extend(tree.root, as_key([token]), [PageId(page)], b"")
    for _ in range(3):
        tree.peek(as_key([5]), b"")
    assert tree.evict(1) == [1]


def test_a_prefix_that_is_looked_up_once_more_outlives_what_no_second_request_used() -> None:
    for eviction in ("lfu", "slru"):
        tree = RadixCache(1, POLICIES[eviction])
        for page, token in enumerate((5, 6), start=1):
            tree.extend(tree.root, as_key([token]), [PageId(page)], b"")
        tree.match(as_key([5]), b"")
        tree.extend(tree.root, as_key([7]), [PageId(3)], b"")
        assert tree.evict(3) == [2, 3, 1]


def test_a_prefix_is_as_old_as_what_it_was_split_from() -> None:
    tree = RadixCache(1, POLICIES["fifo"])
    tree.extend(tree.root, as_key([0, 0]), [PageId(1), PageId(2)], b"")
    tree.extend(tree.root, as_key([1]), [PageId(3)], b"")
    tree.match(as_key([0]), b"")
    assert [tree.evict(1) for _ in range(3)] == [[2], [1], [3]]


def test_a_prefix_is_worth_as_much_as_the_highest_request_that_used_it() -> None:
    tree = RadixCache(1, POLICIES["priority"])
    for page, token in enumerate((5, 6, 7), start=1):
        tree.extend(tree.root, as_key([token]), [PageId(page)], b"", priority=1)
    tree.match(as_key([5]), b"", priority=3)
    tree.match(as_key([6]), b"", priority=2)
    tree.match(as_key([5]), b"", priority=0)
    assert [tree.evict(1) for _ in range(3)] == [[3], [2], [1]]


def test_a_prefix_that_goes_on_waits_behind_what_follows_it() -> None:
    tree = RadixCache(1)
    tree.extend(tree.root, as_key([5]), [PageId(1)], b"")
    tree.extend(tree.root, as_key([5, 6]), [PageId(9), PageId(2)], b"")
    assert tree.queued == 1
    assert [tree.evict(1) for _ in range(3)] == [[2], [1], []]


def test_an_edge_that_only_one_holder_extends_stays_one_node() -> None:
    tree = RadixCache(2)
    node = tree.extend(tree.root, as_key([0, 1]), [PageId(1)], b"").node
    tree.lock(node)
    for page in range(2, 9):
        assert tree.extend(node, as_key([page, page]), [PageId(page)], b"").node is node
    assert tree.num_nodes == 1
