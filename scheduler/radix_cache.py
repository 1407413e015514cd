"""Prefix tree from token ids to KV pages. Integers only; the clock is a counter.

A key is the token ids of whole pages as the bytes of an int32 array, so that comparing an edge is
one memory comparison. Locks count from the node to the root, hence a node is locked at least as
often as its children, and what is unlocked can be evicted leaf by leaf. Matching and inserting
cost as much as the key is long; nothing looks at nodes off the path. The unlocked leaves stand in a
queue in the order of a policy (``scheduler.eviction``). All pages of a node have been used by the same
requests, so that what a policy looks at is the same for each of them.

The interface follows the prefix tree of SGLang (RadixAttention, arXiv:2312.07104).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from model.interface import PageId
from scheduler.cache_listener import CacheListener, Medium
from scheduler.eviction import EvictionQueue, Policy, lru

_TOKEN_BYTES = 4


@dataclass(slots=True, eq=False)
class Node:
    """An edge of the tree and what hangs below it."""

    link: bytes
    """Key in the parent's ``children``: first page of ``key``, after the namespace at the root."""
    key: bytes
    pages: list[PageId]
    parent: "Node | None"
    """None for the root and for nodes that have left the tree."""
    number: int
    """Order of creation; breaks ties among equals."""
    born: int
    """Tick at which the request that computed it first added to the tree."""
    tick: int
    """Of the last use."""
    uses: int
    """Requests that have used it, the one that computed it included."""
    priority: int
    """The highest of those requests."""
    refs: int
    children: dict[bytes, "Node"]
    place: int | None = None
    """Where it stands in the eviction queue."""


class Hit(NamedTuple):
    """What of a key is cached."""

    pages: int
    unlocked: int
    """How many of them count as evictable now and no longer would once locked."""
    window_unlocked: int = 0
    """The same of the pages of the window group that would be locked with them."""
    host: int = 0
    """Pages that follow those and can be loaded from host memory, each into a page of the device."""

    @property
    def reach(self) -> int:
        """Pages that need not be computed."""
        return self.pages + self.host


class Match(NamedTuple):
    """A node and the pages from the start of the key to its end."""

    node: Node
    pages: list[PageId]


class RadixCache:
    """The tree. It knows which pages it holds; who frees what leaves it is the caller's business."""

    def __init__(
        self,
        page_size: int,
        policy: Policy = lru,
        listener: CacheListener | None = None,
        medium: Medium = "GPU",
    ) -> None:
        self._listener = listener
        self._medium: Medium = medium
        self._page_bytes = page_size * _TOKEN_BYTES
        self._clock = 0
        self._created = 0
        self._root = empty_prefix()
        self._loose: EvictionQueue[Node] = EvictionQueue(policy)
        self.leaving: Callable[[Node], None] | None = None
        """Told of a leaf before pages of it are dropped."""
        self.num_nodes = 0
        self.cached = 0
        """Pages in the tree."""
        self.evictable = 0
        """Pages in unlocked nodes."""

    @property
    def root(self) -> Node:
        """The empty prefix; never locked or evicted."""
        return self._root

    @property
    def queued(self) -> int:
        """Nodes in the eviction queue: exactly the unlocked leaves."""
        return len(self._loose)

    def path(self, key: bytes, namespace: bytes) -> list[tuple[Node, int]]:
        """The nodes along ``key`` with how many of their pages it shares; only the last can be partial."""
        return self._descend(self._root, key, namespace)

    def peek(self, key: bytes, namespace: bytes) -> Hit:
        """Say what of ``key`` is cached; changes nothing, not even ages or counts of use."""
        path = self._descend(self._root, key, namespace)
        return Hit(sum(count for _, count in path), sum(count for node, count in path if node.refs == 0))

    def find(self, key: bytes, namespace: bytes) -> list[PageId]:
        """The pages of the longest cached prefix of ``key``; changes nothing."""
        found: list[PageId] = []
        for node, count in self._descend(self._root, key, namespace):
            found += node.pages[:count]
        return found

    def match(self, key: bytes, namespace: bytes, priority: int = 0) -> Match:
        """Find the longest cached prefix of ``key`` for a request, which uses it; splits an edge to end there."""
        return self._follow(self._descend(self._root, key, namespace), self._root, priority)

    def extend(self, node: Node, key: bytes, pages: list[PageId], namespace: bytes, priority: int = 0) -> Match:
        """Make ``key`` a prefix below ``node`` for the request that matched as far as there and has it locked.

        Where the tree already has a page it keeps its own. Returns the node at the end of the key and the tree's
        pages along it; those of ``pages`` that are not among them still belong to the caller.
        """
        path = self._descend(node, key, namespace)
        end, present = self._follow(path, node, priority)
        self._touch(node)
        rest = pages[len(present) :]
        if not rest:
            return Match(end, present)
        tail = key[len(present) * self._page_bytes :]
        self.cached += len(rest)
        if self._listener is not None:
            self._listener.stored(namespace, end.pages[-1] if end.pages else None, tail, rest, self._medium)
        if end is node and node.uses == 1 and node.refs == 1 and not node.children:
            node.key += tail  # Only the request that made the edge has used it, so it may grow under its lock.
            node.pages += rest
            return Match(end, present + rest)
        link = tail[: self._page_bytes]
        self._loose.drop(end)
        end = self._add(namespace + link if end is self._root else link, tail, rest, end)
        end.uses, end.priority = 1, priority
        self.evictable += len(rest)
        self._loose.put(end)
        return Match(end, present + rest)

    def lock(self, node: Node) -> None:
        """Keep the prefix that ends at ``node`` until it is unlocked as often."""
        while node.parent is not None:
            if node.refs == 0:
                self.evictable -= len(node.pages)
                self._loose.drop(node)
            node.refs += 1
            node = node.parent

    def unlock(self, node: Node) -> None:
        """Undo one ``lock``."""
        while node.parent is not None:
            assert node.refs > 0, "a prefix was unlocked more often than locked"
            node.refs -= 1
            if node.refs == 0:
                self.evictable += len(node.pages)
                if not node.children:
                    self._loose.put(node)
            node = node.parent

    def reclaimable(self, node: Node) -> int:
        """Pages that would become evictable if a lock on ``node`` went; changes nothing."""
        count = 0
        while node.parent is not None and node.refs == 1:
            count += len(node.pages)
            node = node.parent
        return count

    def evict(self, count: int) -> list[PageId]:
        """Drop up to ``count`` unlocked pages, leaves as the policy says, from the ends of their keys.

        The caller owns them.
        """
        freed: list[PageId] = []
        while len(freed) < count and len(self._loose):
            node = self._loose.first()
            keep = max(len(node.pages) - (count - len(freed)), 0)
            if self.leaving is not None:
                self.leaving(node)
            freed += node.pages[keep:]
            self._trim(node, keep)
        return freed

    def nodes(self) -> Iterator[Node]:
        """Every node but the root, parents first; for checks."""
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _descend(self, node: Node, key: bytes, namespace: bytes) -> list[tuple[Node, int]]:
        """The children along ``key`` with how many of their pages it shares; only the last can be partial."""
        path: list[tuple[Node, int]] = []
        size, at = self._page_bytes, 0
        while at + size <= len(key):
            link = key[at : at + size]
            child = node.children.get(namespace + link if node is self._root else link)
            if child is None:
                break
            count = self._common_pages(child, key, at)
            path.append((child, count))
            if count < len(child.pages):
                break
            at += count * size
            node = child
        return path

    def _common_pages(self, node: Node, key: bytes, at: int) -> int:
        """Leading pages that ``node`` shares with ``key[at:]``; the first is known to agree."""
        if key.startswith(node.key, at):
            return len(node.pages)
        size = self._page_bytes
        low, high = 1, min(len(node.pages), (len(key) - at) // size) + 1
        while high - low > 1:
            middle = (low + high) // 2
            if key[at + low * size : at + middle * size] == node.key[low * size : middle * size]:
                low = middle
            else:
                high = middle
        return low

    def _follow(self, path: list[tuple[Node, int]], start: Node, priority: int) -> Match:
        """Walk ``path`` from ``start`` for a request: split what is partial, note the use, gather the pages."""
        self._clock += 1
        end = start
        pages: list[PageId] = []
        for node, count in path:
            end = node if count == len(node.pages) else self._split(node, count)
            end.tick = self._clock
            end.uses += 1
            end.priority = max(end.priority, priority)
            pages += end.pages
        if end.place is not None:
            self._loose.put(end)
        return Match(end, pages)

    def _touch(self, node: Node) -> None:
        """Note that the whole prefix that ends at ``node`` is in use."""
        while node.parent is not None:
            node.tick = self._clock
            node = node.parent

    def _split(self, node: Node, count: int) -> Node:
        """Give the first ``count`` pages of ``node`` to a new parent; leases that end at ``node`` still do."""
        parent, at = node.parent, count * self._page_bytes
        assert parent is not None, "the root has no edge to split"
        upper = self._add(node.link, node.key[:at], node.pages[:count], parent)
        upper.refs, upper.born, upper.tick = node.refs, node.born, node.tick
        upper.uses, upper.priority = node.uses, node.priority
        node.link, node.key, node.pages, node.parent = (
            node.key[at : at + self._page_bytes],
            node.key[at:],
            node.pages[count:],
            upper,
        )
        upper.children[node.link] = node
        return upper

    def _add(self, link: bytes, key: bytes, pages: list[PageId], parent: Node) -> Node:
        self._created += 1
        node = Node(link, key, pages, parent, self._created, self._clock, self._clock, 0, 0, 0, {})
        parent.children[link] = node
        self.num_nodes += 1
        return node

    def _trim(self, node: Node, keep: int) -> None:
        """Cut an unlocked leaf to its first ``keep`` pages; with none it leaves the tree."""
        dropped = len(node.pages) - keep
        if self._listener is not None:
            self._listener.removed(node.pages[keep:], self._medium)
        self.cached -= dropped
        self.evictable -= dropped
        if keep:
            del node.pages[keep:]
            node.key = node.key[: keep * self._page_bytes]
            return
        parent = node.parent
        assert parent is not None, "the root is never evicted"
        del parent.children[node.link]
        node.parent = None
        self.num_nodes -= 1
        self._loose.drop(node)
        if parent.refs == 0 and not parent.children and parent.parent is not None:
            self._loose.put(parent)


class Prefix(NamedTuple):
    """A cached prefix as a whole."""

    namespace: bytes
    key: bytes
    pages: list[PageId]


def prefix_to(node: Node, min_uses: int = 0) -> Prefix:
    """The prefix that ends at ``node``, cut at the first edge that fewer than ``min_uses`` requests have used."""
    edges: list[Node] = []
    while node.parent is not None:
        edges.append(node)
        node = node.parent
    edges.reverse()
    keys: list[bytes] = []
    pages: list[PageId] = []
    for edge in edges:
        if edge.uses < min_uses:
            break
        keys.append(edge.key)
        pages += edge.pages
    if not pages:
        return Prefix(b"", b"", [])
    page_bytes = len(keys[0]) // len(edges[0].pages)
    return Prefix(edges[0].link[:-page_bytes], b"".join(keys), pages)


def empty_prefix() -> Node:
    """The root of a tree: no key, no pages, no parent."""
    return Node(b"", b"", [], None, 0, 0, 0, 0, 0, 0, {})
