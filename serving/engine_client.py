"""The frontend's side of the wire: request id to call, one terminal answer each, nothing lost and nothing unbounded.

Answers are merged per request until somebody takes them (``serving.call``). Requests of a caller that left are aborted,
and remembered until the engine's terminal answer came. Where there are several engines each request goes to one of
them, and what is said to the service is said to all; one that dies takes with it what it had begun to answer, and what
it had not goes to another, once.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from configs.schema import Parallel
from scheduler.commands import (
    Abort,
    AbortAll,
    Batch,
    Command,
    Explain,
    FlushCache,
    Frame,
    Generate,
    GetState,
    Look,
    Message,
    Progress,
    Ready,
    Reply,
    Stop,
    Story,
)
from serving.call import Call
from serving.chronicle import Chronicle, Marks, StorySink
from serving.collector_wire import ReplicaLoad
from serving.engine_wire import EngineGone, Link
from serving.open_requests import OpenRequests, StatsSink
from serving.protocol.errors import unavailable
from serving.questions import Questions
from serving.replica import Replica
from serving.replicas import Replicas
from serving.tasks import Tasks

SHIFT_EVERY_S: Final = 0.5
"""Between two movements of waiting requests: long enough for reports to show what the one before has done."""
_ONE: Final = Parallel()
_log = logging.getLogger("serving.engine_client")


class EngineClient:
    """All engines as one."""

    def __init__(
        self,
        links: Sequence[Link],
        *,
        frontend: int,
        stats: StatsSink,
        stories: StorySink = lambda story: None,
        parallel: Parallel = _ONE,
    ) -> None:
        self.dead: str | None = None
        """Why no engine answers any more, and none will."""
        self.draining = False
        self.chronicle = Chronicle(stories)
        self._replicas = Replicas(links, parallel)
        self._tasks = Tasks()
        self._requests = OpenRequests(self._replicas, frontend, stats, self.chronicle, self._tasks, self._lose)
        self._questions = Questions()
        self._ready: Ready | None = None
        self._settled = asyncio.Event()
        """All have become ready once, or never will."""
        self._final: str | None = None
        self._running = False
        self._shifted_s = 0.0

    async def run(self) -> None:
        """Read every link until its engine is gone. Cancel it to stop."""
        self._running = True
        for replica in self._replicas:
            self._tasks.spawn(self._read(replica))
        try:
            await asyncio.Event().wait()
        finally:
            await self._tasks.end()

    async def wait_ready(self) -> Ready:
        """Wait until every engine serves; raises ``EngineGone`` when one will not."""
        await self._settled.wait()
        if self._ready is None:
            raise EngineGone(self.dead or "the engine did not start")
        return self._ready

    def drain(self) -> None:
        """Take no more requests; those accepted go on."""
        self.draining = True

    @property
    def num_open(self) -> int:
        """Requests without a terminal answer."""
        return len(self._requests)

    def open_by_replica(self) -> list[int]:
        """Requests without a terminal answer, of each replica."""
        return self._requests.by_replica()

    async def open(self, requests: Sequence[Generate], endpoint: str, received_ns: int | None = None) -> Call:
        """Send requests whose answers come in one call. Their ids must be new.

        ``received_ns``: when the call came in; without it nothing is told of its requests.
        """
        self.check_open()
        call = Call(len(requests))
        for index, request in enumerate(requests):
            entry = self._requests.add(request, call, index, len(requests), endpoint)
            if received_ns is not None:
                marks = Marks(request.group, len(request.prompt), received_ns, time.monotonic_ns())
                self.chronicle.opened(request.rid, marks)
            await self._requests.place(entry)
        return call

    def check_open(self) -> None:
        """Raise when no request can be taken at all."""
        self._check_alive()
        if self.draining:
            raise unavailable("draining", "The service is shutting down.", 5)

    async def stop(self, stop: Stop) -> None:
        """Tell the engine that a stop string was found; what still comes is swallowed."""
        if (entry := self._requests.get(stop.rid)) is not None:
            entry.abandoned = True
            if entry.replica is not None:
                await entry.replica.tell(stop)

    def abandon(self, requests: Sequence[Generate]) -> None:
        """Abort those that have not ended, as nobody reads any of them now.

        Never waits, so that a cancelled task can call it.
        """
        now_ns = time.monotonic_ns()
        for request in requests:
            self.chronicle.left(request.rid, now_ns)
            entry = self._requests.get(request.rid)
            if entry is not None and not entry.abandoned:
                entry.abandoned = True
                if entry.replica is not None:
                    self._tasks.spawn(entry.replica.tell(Abort(rid=request.rid)))

    async def abort(self, rid: str) -> None:
        """End every request with this id, whichever frontend took it."""
        await self._tell_all(Abort(rid=rid))

    async def abort_all(self) -> None:
        """End every request of the service."""
        await self._tell_all(AbortAll())

    async def flush_cache(self) -> list[Reply]:
        """Forget cached prefixes everywhere; one reply an engine."""
        replies = await self.operate(lambda call: FlushCache(call=call))
        for reply in replies:
            if reply.success:
                self._replicas[reply.replica].flushed()
        return replies

    async def state(self) -> list[Reply]:
        """The state of every engine."""
        return await self.operate(lambda call: GetState(call=call))

    async def explain(self, rid: str) -> list[Story]:
        """What happens to the open requests with this id, whichever engine has them."""
        replies = await self.operate(lambda call: Explain(call=call, rid=rid))
        return [self.chronicle.begun(story) for reply in replies for story in reply.stories]

    async def look(self, since_ns: int, *, tree: bool) -> list[Frame]:
        """What every engine has done since ``since_ns``."""
        replies = await self.operate(lambda call: Look(call=call, since_ns=since_ns, tree=tree))
        return [reply.frame for reply in replies if reply.frame is not None]

    async def operate(self, make: Callable[[str], Command]) -> list[Reply]:
        """Pause, profile, attach a storage and the like, everywhere; one reply of every engine that serves."""
        return await self.operate_each(lambda call, replica: make(call))

    async def operate_each(self, make: Callable[[str, int], Command]) -> list[Reply]:
        """As ``operate``, where each engine is asked in its own way, by its number."""
        self._check_alive()
        asked = self._replicas.serving
        if self._ready is None or not asked:
            raise unavailable("loading", "The engine is still starting.", 5)
        calls = [self._questions.begin(replica) for replica in asked]
        try:
            for replica, call in zip(asked, calls, strict=True):
                await replica.tell(make(call, replica.number))
            return await self._questions.answers(calls)
        finally:
            self._questions.end(calls)

    # ---- what the launcher says of the engines

    def join(self, number: int, link: Link, life: int) -> None:
        """A replica was started again and answers on ``link``; what its life before had not ended is lost."""
        self._lose(self._replicas[number], "it was started again")
        replica = self._replicas.renew(number, link, life)
        if self._running:
            self._tasks.spawn(self._read(replica))

    def end(self, reason: str) -> None:
        """No replica will be started again."""
        self._final = reason
        self._settle()

    def suspect(self, stuck: frozenset[int]) -> None:
        """Replicas that are thought to stand still get no new requests."""
        for replica in self._replicas:
            replica.stuck = replica.number in stuck

    def heard(self, loads: Sequence[ReplicaLoad]) -> None:
        """How busy the replicas are."""
        self._replicas.heard(loads)
        now_s = time.monotonic()
        if now_s - self._shifted_s >= SHIFT_EVERY_S and (found := self._replicas.shift()) is not None:
            self._shifted_s = now_s
            self._requests.recall(*found)

    # ---- one engine

    async def _read(self, replica: Replica) -> None:
        try:
            while True:
                self._dispatch(replica, await replica.link.receive())
        except EngineGone as gone:
            self._lose(replica, str(gone))

    def _dispatch(self, replica: Replica, message: Message) -> None:
        match message:
            case Batch():
                now = time.monotonic()
                for answer in message.messages:
                    self._requests.answered(replica, answer, now)
            case Reply():
                self._questions.answered(replica, message)
            case Ready():
                replica.serve(message)
                self._ready = self._ready or self._replicas.ready
                if self._ready is not None:
                    self._settled.set()
            case Progress():
                pass

    def _lose(self, replica: Replica, reason: str) -> None:
        """What it had begun to answer ends with an error; what it had not goes to another replica."""
        if replica.gone is not None:
            return
        _log.error("engine %d gone: %s", replica.number, reason)
        replica.gone = reason or "the engine has stopped"
        if len(self._replicas) == 1:
            self._final = replica.gone
        self._settle()
        self._questions.lost(replica)
        self._requests.lost(replica)

    def _settle(self) -> None:
        """Notice that no engine answers any more, and none will."""
        if self._final is not None and all(replica.gone is not None for replica in self._replicas):
            self.dead = self.dead or self._final
            self._settled.set()

    def _check_alive(self) -> None:
        if self.dead is not None:
            raise unavailable("engine_dead", "The engine has stopped; the service restarts or ends.", 5)

    async def _tell_all(self, command: Command) -> None:
        self._check_alive()
        for replica in self._replicas:
            await replica.tell(command)
