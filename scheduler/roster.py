"""Which requests there are, where each stands, and the lease it holds there.

    waiting --admit--> running --release--> gone
       ^------requeue------'

A request is *open* until its terminal answer is made. One that is answered while a row of it is in
flight stays among the running, with slot and pages, until that row is read.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from scheduler.cache_tiers import CacheTiers
from scheduler.commands import Story
from scheduler.completions import Completion
from scheduler.page_owner import PageOwner
from scheduler.page_use import usage
from scheduler.port import Answer
from scheduler.priority import Levels
from scheduler.request import Request

MAX_ENDED: Final = 256


class Occupancy(NamedTuple):
    """Requests that wait and that run, and the share of the pages that the running ones hold."""

    waiting: int
    running: int
    kv_usage: float


class Roster:
    """The requests, by state and by id; moves them, and opens and closes their leases."""

    def __init__(self, kv: PageOwner, tiers: CacheTiers | None = None) -> None:
        self.kv = kv
        self.tiers = tiers
        """What lies below the cache."""
        self.waiting: OrderedDict[int, Request] = OrderedDict()
        self.running: dict[int, Request] = {}
        """By number, in order of admission."""
        self.waiting_tokens = 0
        """Prompt tokens that wait."""
        self.levels = Levels()
        """The waiting by urgency."""
        self.started: dict[int, Request] = {}
        """Open requests that have run, in the order in which they first did."""
        self.holders: dict[int, str] = {}
        """Slot → the request that had it last."""
        self.ended: deque[Story] = deque(maxlen=MAX_ENDED)
        """Of requests that were answered last, the newest at the end."""
        self._open: dict[str, Request] = {}
        self._groups: dict[str, dict[str, Request]] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not (self.waiting or self.running)

    @property
    def stalled(self) -> bool:
        """Whether nothing runs and all that waits does so for the storage."""
        return self.tiers is not None and not self.running and all(r.loading for r in self.waiting.values())

    def __contains__(self, rid: str) -> bool:
        return rid in self._open

    def open_requests(self) -> list[Request]:
        """All that have not been answered, in order of arrival."""
        return list(self._open.values())

    def find(self, rid: str) -> list[Request]:
        """Open requests whose id or group is ``rid``."""
        found = dict(self._groups.get(rid, {}))
        if rid in self._open:
            found[rid] = self._open[rid]
        return list(found.values())

    def occupancy(self) -> Occupancy:
        """How full it is now."""
        return Occupancy(len(self.waiting), len(self.running), usage(self.kv.use()))

    def add(self, request: Request) -> None:
        """Queue a new request."""
        self._open[request.rid] = request
        if request.group is not None:
            self._groups.setdefault(request.group, {})[request.rid] = request
        self.waiting[request.number] = request
        self.waiting_tokens += request.prompt_len
        self.levels.add(request)
        if self.tiers is not None:
            self.tiers.queued(request)

    def admit(self, request: Request) -> None:
        """Move a request from the queue to the running, with a lease on what is cached of it."""
        lease = self.kv.open(request.tokens(0, request.match_end), request.namespace, request.urgency)
        request.lease = lease
        request.computed = lease.reach * self.kv.page_size
        self._unqueue(request)
        self.running[request.number] = request
        self.holders[lease.slot] = request.rid
        self.started.setdefault(request.number, request)

    def load(self, requests: Iterable[Request]) -> None:
        """Bring to the device what host memory has of requests that were all admitted in this turn."""
        if self.tiers is not None:
            self.tiers.admitted(requests)

    def completed(self, completions: Iterable[Completion], now_ns: int) -> list[Answer]:
        """Take in what finished off the engine's thread; returns the answers that it makes."""
        if self.tiers is None:
            return []
        answers = [answer for completion in completions for answer in self.tiers.complete(completion)]
        self.tiers.storage.expire(now_ns)
        return answers

    def requeue(self, request: Request) -> None:
        """Put a running request, nothing of which is in flight, back to the head of the queue."""
        self.release(request)
        request.retractions += 1
        self.waiting[request.number] = request
        self.waiting.move_to_end(request.number, last=False)
        self.levels.put_back(request)
        self.waiting_tokens += request.prompt_len

    def release(self, request: Request) -> None:
        """Take a request's slot and pages; what is computed of it stays cached."""
        assert not request.unread, "a request was released with a row in flight"
        lease = request.lease
        assert lease is not None, "a running request has a lease"
        self.kv.close(lease, request.tokens(lease.published * self.kv.page_size, request.known))
        request.lease, request.computed = None, 0
        del self.running[request.number]

    def answered(self, request: Request) -> None:
        """A terminal answer was made: it is open no more, and gone as soon as nothing of it is in flight."""
        del self._open[request.rid]
        self.started.pop(request.number, None)
        if request.group is not None:
            members = self._groups[request.group]
            del members[request.rid]
            if not members:
                del self._groups[request.group]
        if request.lease is None:
            self._unqueue(request)
        elif not request.unread:
            self.release(request)

    def _unqueue(self, request: Request) -> None:
        del self.waiting[request.number]
        self.waiting_tokens -= request.prompt_len
        self.levels.remove(request)
