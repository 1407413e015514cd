"""Which requests there are, where each stands, and the lease it holds there.

    waiting --admit--> running --release--> gone
       ^------requeue------'

A request is *open* until its terminal answer is made. One that is answered while a row of it is in
flight stays among the running, with slot and pages, until that row is read.
"""

from collections import OrderedDict

from scheduler.kv_cache import KVCache
from scheduler.priority import NeverRun
from scheduler.request import Request


class Roster:
    """The requests, by state and by id; moves them, and opens and closes their leases."""

    def __init__(self, kv: KVCache) -> None:
        self.kv = kv
        self.waiting: OrderedDict[int, Request] = OrderedDict()
        self.running: dict[int, Request] = {}
        """By number, in order of admission."""
        self.waiting_tokens = 0
        """Prompt tokens that wait."""
        self.never_run = NeverRun()
        """Those of the waiting that have not run yet."""
        self.started: dict[int, Request] = {}
        """Open requests that have run, in the order in which they first did."""
        self._open: dict[str, Request] = {}
        self._groups: dict[str, dict[str, Request]] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not (self.waiting or self.running)

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

    def add(self, request: Request) -> None:
        """Queue a new request."""
        self._open[request.rid] = request
        if request.group is not None:
            self._groups.setdefault(request.group, {})[request.rid] = request
        self.waiting[request.number] = request
        self.waiting_tokens += request.prompt_len
        self.never_run.add(request)

    def admit(self, request: Request) -> None:
        """Move a request from the queue to the running, with a lease on what is cached of it."""
        lease = self.kv.open(request.tokens(0, request.match_end), request.namespace, request.urgency)
        request.lease = lease
        request.computed = lease.shared * self.kv.page_size
        self._unqueue(request)
        self.running[request.number] = request
        self.started.setdefault(request.number, request)

    def requeue(self, request: Request) -> None:
        """Put a running request, nothing of which is in flight, back to the head of the queue."""
        self.release(request)
        request.retractions += 1
        self.waiting[request.number] = request
        self.waiting.move_to_end(request.number, last=False)
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
        self.never_run.discard(request)
