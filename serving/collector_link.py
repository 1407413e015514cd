"""The frontend's end of the wire to the collector: questions, news of health, and the sink of request figures."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
import zmq
import zmq.asyncio

from scheduler.commands import RequestStats, Story
from scheduler.start import Endpoints, frontend_id
from serving.collector_wire import (
    MAX_ANSWER_BYTES,
    Answer,
    Ask,
    Beat,
    Find,
    FoundAnswer,
    Freeze,
    FreezeEverywhere,
    Hello,
    HttpStats,
    Leave,
    Loads,
    LoadsAnswer,
    MetricsAnswer,
    News,
    Question,
    ReplicaLoad,
    Told,
)
from serving.protocol.collector import Health, Load

ANSWER_TIMEOUT_S: Final = 10.0
BEAT_S: Final = 1.0

_MAX_UNSENT: Final = 100_000
_MAX_QUESTIONS: Final = 1024
_LOG: Final = logging.getLogger(__name__)


class Listener(Protocol):
    """Who is told, and asked, on behalf of the collector."""

    def num_waiting(self) -> list[int]:
        """Requests without a terminal answer, of each replica."""
        ...

    def health_changed(self, health: Health) -> None:
        """The service's health is another."""
        ...

    def loads_changed(self, loads: list[ReplicaLoad]) -> None:
        """Replicas have reported."""
        ...

    def freeze_gc(self) -> None:
        """Collect garbage, and let no later collection look at what is left."""
        ...

    def leave(self, timeout_s: float) -> None:
        """Finish what runs within ``timeout_s`` and exit. Must not block."""
        ...


class CollectorLink:
    """A ``serving.protocol.collector.CollectorClient`` over ZeroMQ. ``run`` must run for answers to come."""

    def __init__(self, context: zmq.asyncio.Context, endpoints: Endpoints, index: int) -> None:
        self.lost = 0
        self._health = Health(state="starting", stage="starting processes", retry_after_s=5.0)
        self._calls = itertools.count(1)
        self._asked: dict[int, asyncio.Future[MetricsAnswer | LoadsAnswer | FoundAnswer]] = {}
        self._decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
        self._socket = context.socket(zmq.DEALER)
        self._socket.set(zmq.IDENTITY, frontend_id(index))
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.MAXMSGSIZE, MAX_ANSWER_BYTES)
        self._socket.connect(endpoints.collector)
        plain: zmq.Context[zmq.SyncSocket] = zmq.Context(context)  # same threads and address space, blocking sockets
        self._push = plain.socket(zmq.PUSH)
        self._push.set(zmq.LINGER, 1000)
        self._push.set(zmq.SNDHWM, _MAX_UNSENT)
        self._push.connect(endpoints.stats)

    async def metrics(self) -> bytes:
        """The Prometheus exposition.

        Raises:
          TimeoutError: the collector did not answer.
        """
        answer = await self._ask(lambda call: Ask(call, "metrics"))
        assert isinstance(answer, MetricsAnswer), "a question about metrics is answered by metrics"
        return answer.body

    async def loads(self) -> list[Load]:
        """One entry a replica.

        Raises:
          TimeoutError: the collector did not answer.
        """
        answer = await self._ask(lambda call: Ask(call, "loads"))
        assert isinstance(answer, LoadsAnswer), "a question about loads is answered by loads"
        return answer.loads

    async def explain(self, rid: str) -> list[Story]:
        """What became of ended requests with this id.

        Raises:
          TimeoutError: the collector did not answer.
        """
        answer = await self._ask(lambda call: Find(call, rid))
        assert isinstance(answer, FoundAnswer), "a question about requests is answered by their stories"
        return answer.stories

    async def freeze_gc(self) -> None:
        """Have every frontend freeze its garbage collector, this one included."""
        await self._send(FreezeEverywhere())

    async def health(self) -> Health:
        """The newest state that the collector told."""
        return self._health

    def tell(self, story: Story) -> None:
        """Report what became of a request; see ``record``."""
        self.record(Told(story))

    def record(self, stats: RequestStats | HttpStats | Told) -> None:
        """Report an ended request or an HTTP exchange. Never blocks; counted in ``lost`` when nobody reads."""
        try:
            self._push.send(msgspec.msgpack.encode(stats), zmq.NOBLOCK)
        except zmq.Again:
            self.lost += 1

    async def run(self, listener: Listener) -> None:
        """Say hello, then read answers and give signs of life until cancelled."""
        await self._send(Hello())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(listener))
            tasks.create_task(self._beat(listener))

    def close(self) -> None:
        """Close the sockets; reports have a second to leave."""
        self._socket.close(linger=0)
        self._push.close()

    async def _read(self, listener: Listener) -> None:
        while True:
            frame = await self._socket.recv()
            try:
                answer = self._decoder.decode(frame)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                _LOG.warning("dropped an undecodable answer of the collector")
                continue
            match answer:
                case News(health=health):
                    self._health = health
                    listener.health_changed(health)
                case Loads(loads=loads):
                    listener.loads_changed(loads)
                case Freeze():
                    listener.freeze_gc()
                case Leave(timeout_s=timeout_s):
                    listener.leave(timeout_s)
                case MetricsAnswer(call=call) | LoadsAnswer(call=call) | FoundAnswer(call=call):
                    asked = self._asked.get(call)
                    if asked is not None and not asked.done():
                        asked.set_result(answer)

    async def _beat(self, listener: Listener) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await self._send(Beat(listener.num_waiting()))

    async def _ask(self, make: Callable[[int], Ask | Find]) -> MetricsAnswer | LoadsAnswer | FoundAnswer:
        if len(self._asked) >= _MAX_QUESTIONS:
            raise TimeoutError("the collector has too many questions open")
        call = next(self._calls)
        answer: asyncio.Future[MetricsAnswer | LoadsAnswer | FoundAnswer] = asyncio.get_running_loop().create_future()
        self._asked[call] = answer
        try:
            await self._send(make(call))
            return await asyncio.wait_for(answer, ANSWER_TIMEOUT_S)
        finally:
            del self._asked[call]

    async def _send(self, question: Question) -> None:
        await self._socket.send(msgspec.msgpack.encode(question))
