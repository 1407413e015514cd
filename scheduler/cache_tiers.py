"""The tiers below the device's cache: what happens to them when work comes back, requests arrive or are admitted."""

from collections.abc import Iterable

from scheduler.channel import Origin
from scheduler.commands import AttachStorage, ClearStorage, DetachStorage, Reply, TierStats
from scheduler.completions import Completion, Fetched, Found, Saved, StorageAnswer, Stored
from scheduler.host_tier import HostTier
from scheduler.kv_cache import KVCache
from scheduler.port import Answer
from scheduler.request import Request
from scheduler.storage_tier import StorageTier


class CacheTiers:
    """Host memory and the storage behind one cache."""

    def __init__(self, kv: KVCache, host: HostTier, storage: StorageTier) -> None:
        self.host = host
        self.storage = storage
        self._kv = kv
        self._asked: dict[int, tuple[Origin, str]] = {}
        """Storage commands under way: who asked, and its call."""

    def queued(self, request: Request) -> None:
        """A request has entered the queue (document: O-16)."""
        if self.storage.attached:
            hit = self._kv.peek(request.tokens(0, request.match_end), request.namespace)
            self.storage.prefetch(request, hit.pages)

    def admitted(self, requests: Iterable[Request]) -> None:
        """All these were admitted: load what host memory has of them (document: O-20)."""
        for request in requests:
            lease, counters = request.lease, self.host.counters
            if lease is None or lease.held is None:
                continue
            if not request.retractions:
                counters.used += len(lease.held.pages)
                counters.used_from_storage += len(self.host.from_storage.intersection(lease.held.pages))
            self._kv.load(lease)

    def stats(self) -> TierStats:
        """The figures of now."""
        host, size = self.host, self.host.page_size
        counters = host.counters
        return TierStats(
            host_used=host.cached * size,
            host_total=host.num_pages * size,
            cached_host=(counters.used - counters.used_from_storage) * size,
            cached_storage=counters.used_from_storage * size,
            saved=counters.saved * size,
            loaded=counters.loaded * size,
            host_evicted=counters.evicted * size,
            stored=counters.stored * size,
            fetched=counters.fetched * size,
            num_loading=self.storage.num_loading,
        )

    def complete(self, completion: Completion) -> list[Answer]:
        """Take in what finished off the engine's thread."""
        match completion:
            case Saved():
                self.storage.keep(self.host.saved(completion.ticket))
            case Stored():
                self.storage.stored(completion.ticket)
            case Found():
                self.storage.found(completion)
            case Fetched():
                self.storage.fetched(completion)
            case StorageAnswer():
                return self._answer(completion)
        return []

    def command(self, origin: Origin, command: AttachStorage | DetachStorage | ClearStorage) -> list[Answer]:
        """Do what an operator asks of the storage; refused while work with it is under way."""
        if self._asked or self.storage.busy:
            what = f"{self.storage.busy} reads and writes" if self.storage.busy else "Another operation"
            message = f"{what} of the storage under way; try again when that is done."
            return [(origin, Reply(call=command.call, success=False, message=message))]
        if isinstance(command, AttachStorage) == self.storage.attached:
            message = f"{'A' if self.storage.attached else 'No'} storage is attached."
            return [(origin, Reply(call=command.call, success=False, message=message))]
        match command:
            case AttachStorage():
                self.storage.prefetch_policy = command.prefetch or self.storage.prefetch_policy
                self.host.copies.attach(self._ask(origin, command.call), command.directory)
            case ClearStorage():
                self.host.copies.clear(self._ask(origin, command.call))
            case DetachStorage():
                self.storage.attached = False
                self.host.copies.detach()
                return [(origin, Reply(call=command.call, success=True, message="The storage is detached."))]
        return []

    def _ask(self, origin: Origin, call: str) -> int:
        ticket = self.host.ticket()
        self._asked[ticket] = (origin, call)
        return ticket

    def _answer(self, answer: StorageAnswer) -> list[Answer]:
        origin, call = self._asked.pop(answer.ticket)
        if answer.success:
            self.storage.attached = True
        return [(origin, Reply(call=call, success=answer.success, message=answer.message))]
