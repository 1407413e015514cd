"""Which blocks the KV cache holds, as events in the format that SGLang and vLLM publish and routers read.

A block is a page. A batch is ``[ts, events, dp_rank]`` in MessagePack; an event is an array that begins with its name,
its fields those of vLLM, which are SGLang's and some more. Where layers slide, events of window pages carry their
group; their hashes are those of the full pages beside them, so a reader that knows of no groups must pass them over.
"""

from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct

from model.interface import PageId
from scheduler.cache_listener import FULL_GROUP, Medium
from scheduler.cadence import Cadence
from scheduler.commands import StepStats
from scheduler.observe import CacheFlushed, Event
from scheduler.page_hash import PageDigests, chain_start, short_hash
from scheduler.prefix_cache import adapter_of

MAX_PENDING_BLOCKS = 65_536
"""Blocks of events that are not yet published; at that many they are, whether a report is due or not."""


class BlockStored(Struct, frozen=True, array_like=True, tag=True):
    """Blocks entered the cache, one after the other, behind the parent."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = "GPU"
    lora_name: str | None = None
    """Adapter of the requests that computed them."""
    extra_keys: None = None
    group_idx: int | None = None
    """1: window pages; None: pages of the layers that see everything."""


class BlockRemoved(Struct, frozen=True, array_like=True, tag=True):
    """Blocks left the cache."""

    block_hashes: list[int]
    medium: str | None = "GPU"
    group_idx: int | None = None


class AllBlocksCleared(Struct, frozen=True, array_like=True, tag=True):
    """Nothing is cached any more."""


KVEvent = BlockStored | BlockRemoved | AllBlocksCleared


def place_of(event: BlockStored | BlockRemoved) -> tuple[str, int | None]:
    """Medium and page group that an event is about."""
    return event.medium or "GPU", event.group_idx or None


class EventBatch(Struct, frozen=True, array_like=True):
    """One message: what happened since the one before."""

    ts: float
    """Seconds since the epoch, when it was published."""
    events: list[KVEvent]
    dp_rank: int | None = None


class KVEvents:
    """Gathers events from the prefix cache and publishes them with the reports (document: M-21).

    A ``CacheListener`` of the cache and an ``Observer`` of the engine.

    Args:
        page_size: tokens of a page.
        interval: decode steps from one report to the next.
        publish: takes a batch of events, never blocks.
    """

    def __init__(self, page_size: int, interval: int, publish: Callable[[list[KVEvent]], None]) -> None:
        self._page_size = page_size
        self._cadence = Cadence(interval)
        self._publish = publish
        self._digests: dict[tuple[Medium, int], PageDigests] = {}
        """By medium and page group."""
        self._pending: list[KVEvent] = []
        self._pending_blocks = 0

    def stored(
        self,
        namespace: bytes,
        parent: PageId | None,
        key: bytes,
        pages: Sequence[PageId],
        medium: Medium = "GPU",
        group: int = FULL_GROUP,
    ) -> None:
        """See ``CacheListener``. What continues the event before it becomes part of it."""
        start = chain_start(namespace) if parent is None else self._digests[medium, FULL_GROUP].of(parent)
        digests = self._digests.setdefault((medium, group), PageDigests(self._page_size))
        hashes = digests.add(start, key, pages)
        before = None if parent is None else short_hash(start)
        tokens: list[int] = np.frombuffer(key, np.int32).tolist()
        last = self._pending[-1] if self._pending else None
        place = medium, group or None
        if isinstance(last, BlockStored) and place_of(last) == place and last.block_hashes[-1] == before:
            last.block_hashes.extend(hashes)
            last.token_ids.extend(tokens)
        else:
            self._pending.append(
                BlockStored(
                    hashes,
                    before,
                    tokens,
                    self._page_size,
                    medium=medium,
                    lora_name=adapter_of(namespace),
                    group_idx=group or None,
                )
            )
        self._grown(len(hashes))

    def removed(self, pages: Sequence[PageId], medium: Medium = "GPU", group: int = FULL_GROUP) -> None:
        """See ``CacheListener``. Removals in a row are one event."""
        hashes = self._digests[medium, group].take(pages)
        last = self._pending[-1] if self._pending else None
        if isinstance(last, BlockRemoved) and place_of(last) == (medium, group or None):
            last.block_hashes.extend(hashes)
        else:
            self._pending.append(BlockRemoved(hashes, medium, group or None))
        self._grown(len(hashes))

    def observe(self, event: Event) -> None:
        """Take one event of the engine."""
        if isinstance(event, StepStats):
            if self._cadence.due(event) is not None:
                self.flush()
        elif isinstance(event, CacheFlushed) and not any(len(digests) for digests in self._digests.values()):
            self._pending_blocks = 0
            self._pending[:] = (AllBlocksCleared(),)  # what came before is of no account

    def flush(self) -> None:
        """Publish what is pending."""
        if self._pending:
            events, self._pending, self._pending_blocks = self._pending, [], 0
            self._publish(events)

    def _grown(self, blocks: int) -> None:
        self._pending_blocks += blocks
        if self._pending_blocks >= MAX_PENDING_BLOCKS:
            self.flush()
