"""What of host memory is in the storage, and what comes back from there: prefetches and writes under way."""

from dataclasses import dataclass, field

from configs.schema import StoragePrefetch
from model.interface import PageId
from scheduler.completions import Fetched, Found
from scheduler.copies import Chain
from scheduler.host_tier import TOKEN_BYTES, HostTier, Save
from scheduler.radix_cache import Node
from scheduler.request import Request

MAX_PREFETCHES = 64
"""At once; a request beyond that computes what it lacks."""


@dataclass(slots=True, eq=False)
class Prefetch:
    """Pages of one waiting request on their way from the storage to host memory."""

    request: Request
    anchor: Node
    """Where the prefix ends that host memory has; locked."""
    chain: Chain
    pages: list[PageId] = field(default_factory=list[PageId])


@dataclass(slots=True)
class StorageTier:
    """Between host memory and the storage. Does nothing while none is attached."""

    host: HostTier
    prefetch_policy: StoragePrefetch
    timeout_ns: int
    least_pages: int
    """Fewer pages are not worth a prefetch."""
    attached: bool
    _prefetches: dict[int, Prefetch] = field(default_factory=dict[int, Prefetch])
    _stores: dict[int, Save] = field(default_factory=dict[int, Save])
    _storing: int = 0
    """Pages being written."""

    @property
    def busy(self) -> int:
        """Prefetches and writes under way."""
        return len(self._prefetches) + len(self._stores)

    @property
    def num_loading(self) -> int:
        """Requests that wait for their prefetch."""
        return sum([prefetch.request.loading for prefetch in self._prefetches.values()])

    def keep(self, save: Save) -> None:
        """Write fresh copies to the storage, and unlock them then; those that find no room are unlocked at once.

        Pages being written cannot make room in host memory, so they may be half of it at most.
        """
        if not self.attached or (self._storing + len(save.pages)) * 2 > self.host.num_pages:
            self.host.unlock(save.node)
            return
        ticket = self.host.ticket()
        self._stores[ticket] = save
        self._storing += len(save.pages)
        self.host.copies.store(ticket, save.chain, save.pages)

    def stored(self, ticket: int) -> None:
        """A write is done."""
        save = self._stores.pop(ticket)
        self._storing -= len(save.pages)
        self.host.counters.stored += len(save.pages)
        self.host.unlock(save.node)

    def prefetch(self, request: Request, on_device: int) -> None:
        """Begin to fetch what neither the device nor host memory has of a request that enters the queue."""
        if not self.attached or len(self._prefetches) >= MAX_PREFETCHES or self.host.flushing:
            return
        host, size = self.host, self.host.page_size
        total = request.match_end // size
        key = request.tokens(0, total * size).tobytes()
        have = len(host.tree.find(key, request.namespace))
        if total - max(on_device, have) < self.least_pages:
            return
        anchor, _ = host.tree.match(key[: have * size * TOKEN_BYTES], request.namespace, request.urgency)
        host.lock(anchor)
        ticket, chain = host.ticket(), Chain(request.namespace, key, have)
        self._prefetches[ticket] = Prefetch(request, anchor, chain)
        request.loading = self.prefetch_policy != "best_effort"
        host.copies.look_up(ticket, chain)

    def found(self, found: Found) -> None:
        """The storage has so many of the pages asked for: read them, as far as there is room."""
        prefetch = self._prefetches[found.ticket]
        room = self.host.num_pages // 2 - len(self.host.lent)
        if min(found.pages, room) < self.least_pages or self.host.flushing:
            self._end(found.ticket)
            return
        prefetch.pages = self.host.take(min(found.pages, room))
        if not prefetch.pages:
            self._end(found.ticket)
            return
        self.host.lent.update(prefetch.pages)
        self.host.copies.fetch(found.ticket, prefetch.chain, prefetch.pages)

    def fetched(self, fetched: Fetched) -> None:
        """Pages have been read: they join the prefixes in host memory."""
        host, prefetch = self.host, self._prefetches[fetched.ticket]
        host.lent.difference_update(prefetch.pages)
        read = prefetch.pages[: 0 if host.flushing else fetched.pages]
        kept: set[PageId] = set()
        if read:
            size, chain = host.page_size * TOKEN_BYTES, prefetch.chain
            key = chain.key[chain.first * size : (chain.first + len(read)) * size]
            _, taken = host.tree.extend(prefetch.anchor, key, read, chain.namespace, prefetch.request.urgency)
            kept = set(taken).intersection(read)
        host.from_storage |= kept
        host.counters.fetched += len(kept)
        host.allocator.give(page for page in prefetch.pages if page not in kept)
        self._end(fetched.ticket)

    def expire(self, now_ns: int) -> None:
        """Let requests go on that have waited for their prefetch for long enough."""
        if self.prefetch_policy == "timeout":
            for prefetch in self._prefetches.values():
                if now_ns - prefetch.request.arrived_ns >= self.timeout_ns:
                    prefetch.request.loading = False

    def _end(self, ticket: int) -> None:
        prefetch = self._prefetches.pop(ticket)
        prefetch.request.loading = False
        self.host.unlock(prefetch.anchor)
