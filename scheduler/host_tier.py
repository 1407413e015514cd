"""Which prefixes have a copy in host memory: a second tree, over host pages.

A page enters the tree when its copy is ordered and may be loaded once the copy is there; until then it is locked
and *unready*. Prefixes are whole from the first page on, so whatever is saved is saved with all that comes before it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from configs.schema import HostWritePolicy
from model.interface import PageId
from scheduler.copies import Chain, Copies
from scheduler.page_allocator import PageAllocator
from scheduler.radix_cache import Node, Prefix, RadixCache, prefix_to

MAX_UNREADY = 512
"""Host pages whose copies are under way at most; what comes on top is saved when its request next adds to the cache."""
SAVE_PAGES = 8
"""New pages of a running request that are worth a copy before it ends; so a decode row does not save page by page."""
SELECTIVE_USES = 2
"""Requests that must have used a prefix before ``write_through_selective`` saves it (SGLang's threshold)."""
TOKEN_BYTES = 4


class Held(NamedTuple):
    """Host pages that are locked, to be loaded behind what the device has of a prefix."""

    node: Node
    pages: list[PageId]


@dataclass(slots=True, eq=False)
class Save:
    """Copies under way, and what they are of."""

    node: Node
    """Locked until they are there."""
    chain: Chain
    pages: list[PageId]


@dataclass(slots=True)
class TierCounters:
    """Totals in pages since the start."""

    saved: int = 0
    loaded: int = 0
    evicted: int = 0
    stored: int = 0
    fetched: int = 0
    used: int = 0
    """Loaded for requests that had not run before."""
    used_from_storage: int = 0
    """Of the used, those that a storage had brought to host memory, each the first time."""


@dataclass(slots=True)
class HostTier:
    """Host pages, the tree that knows them, and the copies under way."""

    allocator: PageAllocator
    tree: RadixCache
    copies: Copies
    page_size: int
    policy: HostWritePolicy
    load_pages: int
    """Fewer pages are computed anew instead of loaded."""
    counters: TierCounters = field(default_factory=TierCounters)
    from_storage: set[PageId] = field(default_factory=set[PageId])
    """Host pages that a storage brought and that have not been loaded yet."""
    saves: dict[int, Save] = field(default_factory=dict[int, Save])
    """By ticket."""
    lent: set[PageId] = field(default_factory=set[PageId])
    """Host pages that are being filled from a storage, and not in the tree yet."""
    _unready: set[PageId] = field(default_factory=set[PageId])
    _locks: Counter[int] = field(default_factory=Counter[int])
    """Locks on the tree, by number of the node where they end; for checks."""
    _tickets: int = 0
    flushing: bool = False
    """Whether what is locked is to be forgotten, too, once nothing is."""

    @property
    def num_pages(self) -> int:
        """Host pages in all."""
        return self.allocator.num_pages

    @property
    def cached(self) -> int:
        """Host pages that hold a prefix, or soon will."""
        return self.tree.cached

    def ticket(self) -> int:
        """A new name for work under way."""
        self._tickets += 1
        return self._tickets

    def reach(self, key: bytes, namespace: bytes, on_device: int) -> int:
        """Pages that could be loaded behind the first ``on_device`` pages of ``key``. Changes nothing."""
        if self.flushing:
            return 0
        count = self._ready(self.tree.find(key, namespace)) - on_device
        return count if count >= self.load_pages else 0

    def hold(self, key: bytes, namespace: bytes, on_device: int, priority: int) -> Held | None:
        """Lock what ``reach`` counts, for a request that uses it; None if that is nothing."""
        count = self.reach(key, namespace, on_device)
        if not count:
            return None
        end = (on_device + count) * self.page_size * TOKEN_BYTES
        node, pages = self.tree.match(key[:end], namespace, priority)
        self.lock(node)
        return Held(node, pages[on_device:])

    def load(self, host_pages: Sequence[PageId], pages: Sequence[PageId]) -> None:
        """Copy host pages that are held to pages of the device."""
        self.copies.load(host_pages, pages)
        self.counters.loaded += len(pages)
        self.from_storage.difference_update(host_pages)

    def written(self, node: Node, priority: int) -> None:
        """A running request has added to the device's cache, up to ``node``."""
        if self.policy != "write_back":
            self.save(self._worth_saving(node), priority, SAVE_PAGES)

    def closed(self, node: Node, priority: int) -> None:
        """A request has ended whose pages the device's cache keeps up to ``node``."""
        if self.policy != "write_back":
            self.save(self._worth_saving(node), priority)

    def leaving(self, node: Node) -> None:
        """The device's cache is about to drop pages of the leaf ``node``: the last chance to save them."""
        self.save(self._worth_saving(node), node.priority)

    def save(self, prefix: Prefix, priority: int, at_least: int = 1) -> None:
        """Begin to copy what host memory lacks of a prefix on the device, unless that is less than ``at_least`` pages.

        What finds no room is left out.
        """
        if self.flushing or not prefix.pages:
            return
        node, present = self.tree.match(prefix.key, prefix.namespace, priority)
        have, missing = len(present), len(prefix.pages) - len(present)
        count = min(missing, MAX_UNREADY - len(self._unready))
        if missing < at_least or count <= 0:
            return
        self.lock(node)  # making room must not take what comes before
        fresh = self.take(count)
        if fresh:
            size = self.page_size * TOKEN_BYTES
            key = prefix.key[: (have + len(fresh)) * size]
            end, _ = self.tree.extend(node, key[have * size :], fresh, prefix.namespace, priority)
            self.lock(end)
            ticket = self.ticket()
            self.saves[ticket] = Save(end, Chain(prefix.namespace, key, have), fresh)
            self._unready.update(fresh)
            self.copies.save(ticket, prefix.pages[have : have + len(fresh)], fresh)
        self.unlock(node)

    def saved(self, ticket: int) -> Save:
        """The copies of ``ticket`` are there. The caller unlocks their node."""
        save = self.saves.pop(ticket)
        self._unready.difference_update(save.pages)
        self.counters.saved += len(save.pages)
        return save

    def take(self, count: int) -> list[PageId]:
        """Up to ``count`` pages of host memory, from prefixes that nobody uses if need be."""
        short = count - len(self.allocator)
        if short > 0:
            self._evict(short)
        return self.allocator.take(min(count, len(self.allocator)))

    def lock(self, node: Node) -> None:
        """Keep the host pages up to ``node``."""
        self.tree.lock(node)
        self._locks[node.number] += 1

    def unlock(self, node: Node) -> None:
        """Undo one ``lock``."""
        self.tree.unlock(node)
        self._locks[node.number] -= 1
        if self.flushing and not self._locks.total():
            self.flushing = False
            self._evict(self.tree.evictable)

    def flush(self) -> int:
        """Forget everything; returns how many pages that is. What is under way is forgotten when it is done."""
        count = self.tree.cached
        self.flushing = self._locks.total() > 0
        self._evict(self.tree.evictable)
        return count

    def check(self) -> None:
        """Assert that every host page is free or in the tree, and that locks and counters say what is so."""
        nodes = list(self.tree.nodes())
        own = [*self.allocator.pages(), *self.lent, *(page for node in nodes for page in node.pages)]
        assert sorted(own) == list(range(1, self.num_pages + 1)), "a host page is lost or has two owners"
        assert self._unready == {page for save in self.saves.values() for page in save.pages}, "copies were miscounted"
        expected: Counter[int] = Counter()
        for node in nodes:
            if not self._locks[node.number]:
                continue
            step, count = node, self._locks[node.number]
            while step.parent is not None:
                expected[step.number] += count
                step = step.parent
        assert all(node.refs == expected[node.number] for node in nodes), "a lock on a host page was lost"
        assert self.from_storage.isdisjoint(self.allocator.pages()), "a free host page is said to come from the storage"

    def _worth_saving(self, node: Node) -> Prefix:
        return prefix_to(node, SELECTIVE_USES if self.policy == "write_through_selective" else 0)

    def _ready(self, pages: list[PageId]) -> int:
        """How many of the leading ``pages`` are there."""
        if self._unready:
            for index, page in enumerate(pages):
                if page in self._unready:
                    return index
        return len(pages)

    def _evict(self, count: int) -> None:
        freed = self.tree.evict(count)
        self.counters.evicted += len(freed)
        self.from_storage.difference_update(freed)
        self.allocator.give(freed)
