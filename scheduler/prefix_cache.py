"""The family of prefix caches: what ``KVCache`` asks of one, and which there are."""

from collections.abc import Iterator
from typing import Protocol

from configs.schema import CacheFamily, Eviction
from model.interface import PageId
from scheduler.cache_listener import CacheListener
from scheduler.chunk_cache import ChunkCache
from scheduler.eviction import POLICIES
from scheduler.radix_cache import Hit, Match, Node, RadixCache


class PrefixCache(Protocol):
    """Remembers pages by the tokens that they hold; which pages are free is its owner's business."""

    num_nodes: int
    cached: int
    """Pages in it."""
    evictable: int
    """Pages in it that nobody has locked."""

    @property
    def root(self) -> Node:
        """The empty prefix."""
        ...

    @property
    def queued(self) -> int:
        """Nodes that could be evicted next."""
        ...

    def path(self, key: bytes, namespace: bytes) -> list[tuple[Node, int]]:
        """The nodes along ``key`` with how many of their pages it shares; changes nothing."""
        ...

    def peek(self, key: bytes, namespace: bytes) -> Hit:
        """Say what of ``key`` is cached; changes nothing."""
        ...

    def match(self, key: bytes, namespace: bytes, priority: int = 0) -> Match:
        """Find the longest cached prefix of ``key`` for a request."""
        ...

    def extend(self, node: Node, key: bytes, pages: list[PageId], namespace: bytes, priority: int = 0) -> Match:
        """Offer ``pages``, which hold ``key`` below ``node``.

        Returns the node at the end and the leading pages of the key that are the cache's now, its own where it had
        them; the rest of ``pages`` still belongs to the caller.
        """
        ...

    def lock(self, node: Node) -> None:
        """Keep the prefix that ends at ``node`` until it is unlocked as often."""
        ...

    def unlock(self, node: Node) -> None:
        """Undo one ``lock``."""
        ...

    def reclaimable(self, node: Node) -> int:
        """Pages that would become evictable if a lock on ``node`` went; changes nothing."""
        ...

    def evict(self, count: int) -> list[PageId]:
        """Drop up to ``count`` pages that nobody has locked. The caller owns them."""
        ...

    def nodes(self) -> Iterator[Node]:
        """Every node but the root; for checks."""
        ...


def prefix_cache(
    family: CacheFamily, eviction: Eviction, page_size: int, listener: CacheListener | None = None
) -> PrefixCache:
    """The cache that a launch file asks for (document: O-26)."""
    return ChunkCache() if family == "chunk" else RadixCache(page_size, POLICIES[eviction], listener)


def namespace(*parts: str | None) -> bytes:
    """What keeps caches apart: a request's adapter, ``extra_key`` and ``cache_salt`` (document: O-26).

    Parts that differ in any place give different namespaces, wherever one ends and the next begins (SGLang joins
    key and adapter without a mark between them). Without any it is empty.
    """
    if all(part is None for part in parts):
        return b""
    coded = [b"" if part is None else part.encode(errors="surrogatepass") for part in parts]
    lengths = ["-" if part is None else str(len(code)) for part, code in zip(parts, coded, strict=True)]
    return b"\0".join([",".join(lengths).encode(), *coded])


def adapter_of(space: bytes) -> str | None:
    """The adapter, the first part of what made the namespace ``space``."""
    lengths, _, coded = space.partition(b"\0")
    length = lengths.partition(b",")[0]
    return coded[: int(length)].decode(errors="surrogatepass") if length.isdigit() else None
