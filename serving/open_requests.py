"""The requests of one frontend from when they are sent to their terminal answer, wherever they run meanwhile."""

import math
import time
from collections.abc import Callable
from typing import Final

from scheduler.commands import Delta, Finished, Generate, Recall, Rejected, RequestStats
from serving.call import Call
from serving.chronicle import Chronicle
from serving.engine_wire import EngineGone
from serving.protocol.errors import RequestError, unavailable
from serving.replica import Replica
from serving.replicas import Replicas
from serving.request_figures import Entry, measure
from serving.tasks import Tasks

StatsSink = Callable[[RequestStats], None]
LostSink = Callable[[Replica, str], None]
RECALLED: Final = "recalled"


class OpenRequests:
    """One entry a request; each gets one terminal answer, or its call fails.

    Args:
        replicas: where they may go.
        frontend: which frontend this is.
        stats: takes the figures of each that ended.
        chronicle: is told of each that ended.
        tasks: does what need not be waited for.
        lost: is told of a replica that takes nothing any more.
    """

    def __init__(
        self,
        replicas: Replicas,
        frontend: int,
        stats: StatsSink,
        chronicle: Chronicle,
        tasks: Tasks,
        lost: LostSink,
    ) -> None:
        self._replicas = replicas
        self._frontend = frontend
        self._stats = stats
        self._chronicle = chronicle
        self._tasks = tasks
        self._lost = lost
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, rid: str) -> Entry | None:
        """A request that is open."""
        return self._entries.get(rid)

    def by_replica(self) -> list[int]:
        """How many there are at each replica."""
        counts = [0] * len(self._replicas)
        for entry in self._entries.values():
            if entry.replica is not None:
                counts[entry.replica.number] += 1
        return counts

    def add(self, request: Generate, call: Call, index: int, choices: int, endpoint: str) -> Entry:
        """A new request; it goes nowhere yet."""
        assert request.rid not in self._entries, "request ids are unique"
        entry = self._entries[request.rid] = Entry(request, call, index, choices, endpoint, time.monotonic())
        return entry

    async def place(self, entry: Entry) -> None:
        """Send a request to a replica, another than before; where none serves, its call fails."""
        if entry.abandoned:
            self._fail(entry, RequestError(499, "client_closed", "The client left before the request was sent again."))
            return
        replica = entry.replica = self._replicas.choose(entry.request, entry.replica)
        if replica is None:
            self._fail(entry, unavailable("engine_dead", "No engine serves now; one is being started.", 5))
            return
        try:
            await replica.link.send(entry.request)
        except EngineGone as gone:
            self._lost(replica, str(gone))

    def answered(self, replica: Replica, answer: Delta | Finished | Rejected, now_s: float) -> None:
        """What a replica says of a request; of one that it does not have (any more) it is not heard."""
        entry = self._entries.get(answer.rid)
        if entry is None or entry.replica is not replica:
            return
        if isinstance(answer, Delta):
            entry.note(len(answer.tokens), now_s)
            if not entry.abandoned:
                entry.call.push(entry.index, answer, None)
            return
        if isinstance(answer, Rejected) and answer.code == RECALLED and not entry.abandoned:
            self._move(entry)
            return
        replica.left(answer.rid)
        del self._entries[answer.rid]
        self._chronicle.answered(answer, time.monotonic_ns())
        if isinstance(answer, Rejected):
            entry.call.fail(_refusal(answer))
        else:
            if entry.first_s is not None:
                entry.note(len(answer.delta.tokens), now_s)
            if not entry.abandoned:
                entry.call.push(entry.index, answer.delta, answer)
        self._stats(measure(entry, answer, self._frontend, now_s))

    def lost(self, replica: Replica) -> None:
        """What a replica had begun to answer ends with an error; what it had not goes to another."""
        others = bool(self._replicas.serving)
        for entry in [entry for entry in self._entries.values() if entry.replica is replica]:
            if others and entry.movable:
                self._move(entry)
            else:
                error = RequestError(500, "engine_dead", "The engine stopped before the request was done.")
                self._fail(entry, error)

    def recall(self, replica: Replica, share: float) -> None:
        """Ask for a share of this frontend's requests back, the youngest first; those that run stay."""
        mine = [entry for entry in self._entries.values() if entry.replica is replica]
        quiet = [entry for entry in reversed(mine) if entry.movable]
        for entry in quiet[: math.ceil(share * len(mine))]:
            self._tasks.spawn(replica.tell(Recall(rid=entry.request.rid)))

    def _move(self, entry: Entry) -> None:
        entry.moves += 1
        if entry.replica is not None:
            entry.replica.left(entry.request.rid)
        self._tasks.spawn(self.place(entry))

    def _fail(self, entry: Entry, error: RequestError) -> None:
        """No answer will come."""
        if entry.replica is not None:
            entry.replica.left(entry.request.rid)
        del self._entries[entry.request.rid]
        self._chronicle.forget(entry.request.rid)
        entry.call.fail(error)
        self._stats(measure(entry, None, self._frontend, time.monotonic()))


def _refusal(answer: Rejected) -> RequestError:
    retry = answer.retry_after_s
    if retry is None and answer.status == 503:
        retry = 1.0
    return RequestError(answer.status, answer.code, answer.message, param=answer.param, retry_after_s=retry)
