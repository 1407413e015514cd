"""The prefix cache that keeps nothing: what a request computes is its own and goes with it.

Chosen by ``cache.radix: false``; the documents' ChunkCache. Prompts are computed in chunks all the
same, each reading the pages of those before it through the request's own lease.
"""

from collections.abc import Iterator

from model.interface import PageId
from scheduler.radix_cache import Hit, Match, Node, empty_prefix


class ChunkCache:
    """An empty prefix, and nothing below it."""

    def __init__(self) -> None:
        self._root = empty_prefix()
        self.num_nodes = 0
        self.cached = 0
        """Pages in it."""
        self.evictable = 0
        """Pages in it that nobody uses."""

    @property
    def root(self) -> Node:
        """The empty prefix."""
        return self._root

    @property
    def queued(self) -> int:
        """Nodes that could be evicted."""
        return 0

    def path(self, key: bytes, namespace: bytes) -> list[tuple[Node, int]]:
        """Nothing is cached."""
        del key, namespace
        return []

    def peek(self, key: bytes, namespace: bytes) -> Hit:
        """Nothing is cached."""
        del key, namespace
        return Hit(0, 0)

    def match(self, key: bytes, namespace: bytes, priority: int = 0) -> Match:
        """Find nothing."""
        del key, namespace, priority
        return Match(self._root, [])

    def extend(self, node: Node, key: bytes, pages: list[PageId], namespace: bytes, priority: int = 0) -> Match:
        """Take no page: all of ``pages`` still belong to the caller."""
        del key, pages, namespace, priority
        return Match(node, [])

    def lock(self, node: Node) -> None:
        """Keep nothing."""

    def unlock(self, node: Node) -> None:
        """Let go of nothing."""

    def reclaimable(self, node: Node) -> int:
        """Pages that would become evictable if a lock went."""
        del node
        return 0

    def evict(self, count: int) -> list[PageId]:
        """Have nothing to give."""
        del count
        return []

    def nodes(self) -> Iterator[Node]:
        """No nodes."""
        return iter(())
