"""The main of a frontend process: HTTP on the launcher's socket, a link to the engine, a link to the collector."""

import asyncio
import gc
import logging
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import uvicorn
import uvloop
import zmq.asyncio

from configs import gc_pauses, log
from scheduler.start import FrontendStart, exit_with_parent, read_start
from serving.app import build_app
from serving.collector_link import CollectorLink
from serving.collector_wire import ReplicaLoad
from serving.crash_dump import CrashDump, crash_dump_folder
from serving.engine_client import EngineClient
from serving.engine_wire import Link as EngineLink
from serving.link import Link
from serving.listener import ListenedLink, Listener
from serving.protocol.collector import Health, ReplicaHealth
from serving.request_log import RequestLog
from serving.tracing import open_tracing

KEEP_ALIVE_S: Final = 65
"""Longer than the idle time after which usual proxies close: it is theirs to end a connection."""
CLOSE_S: Final = 3
"""For answers to reach slow readers once everything has ended."""
_LEAVE_POLL_S: Final = 0.05
_LOG: Final = logging.getLogger(__name__)


class Links:
    """The links of one frontend: of each replica the one to its newest life."""

    def __init__(self, connect: Callable[[int, int], Link], replicas: int) -> None:
        self._connect = connect
        self._links = [connect(replica, 0) for replica in range(replicas)]
        self._lives = [0] * replicas

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links)

    def life(self, replica: int) -> int:
        """Which life of a replica the link leads to."""
        return self._lives[replica]

    def fail(self, replica: int, reason: str) -> None:
        """The process at its other end is gone."""
        self._links[replica].fail(reason)

    def renew(self, replica: int, life: int) -> Link:
        """A link to a newer life; the one before has failed."""
        self._lives[replica] = life
        self._links[replica] = self._connect(replica, life)
        return self._links[replica]


class Frontend:
    """Passes on what the collector says: to the links, to the client, to the HTTP server."""

    def __init__(
        self, client: EngineClient, links: Links, listeners: Sequence[Listener], server: uvicorn.Server
    ) -> None:
        self._client = client
        self._links = links
        self._listeners = listeners
        self._server = server
        self._leaving: asyncio.Task[None] | None = None
        self._greetings: set[asyncio.Task[None]] = set()

    def num_waiting(self) -> list[int]:
        """Requests without a terminal answer, of each replica."""
        return self._client.open_by_replica()

    def health_changed(self, health: Health) -> None:
        """Refuse new requests while draining; end those of engines that are gone, and all when there is no way back."""
        if health.state == "draining":
            self._client.drain()
        if health.state == "dead":
            self._client.end(health.reason)
        for replica in health.replicas:
            if health.state == "dead":
                self._links.fail(replica.dp_rank, health.reason)
            else:
                self._follow(replica)
        self._client.suspect(frozenset(one.dp_rank for one in health.replicas if one.state == "stuck"))

    def loads_changed(self, loads: list[ReplicaLoad]) -> None:
        """Replicas have reported."""
        self._client.heard(loads)

    def _follow(self, told: ReplicaHealth) -> None:
        number, life = told.dp_rank, told.restarts
        if told.state == "dead" or life > self._links.life(number):
            self._links.fail(number, told.reason)
        if life > self._links.life(number):
            link = self._links.renew(number, life)
            self._client.join(number, heard(link, self._listeners), life)
            greeting = asyncio.create_task(link.greet())
            self._greetings.add(greeting)
            greeting.add_done_callback(self._greetings.discard)

    def freeze_gc(self) -> None:
        """Collect garbage, and let no later collection look at what is left (document: M-19)."""
        gc.collect()
        gc.freeze()
        _LOG.info("garbage collection: %d objects are collected no more", gc.get_freeze_count())

    def leave(self, timeout_s: float) -> None:
        """Exit once every request has its answer, or after ``timeout_s``."""
        self._client.drain()
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave(timeout_s))

    async def _leave(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while self._client.num_open:
                    await asyncio.sleep(_LEAVE_POLL_S)
        except TimeoutError:
            _LOG.warning("left with %d requests unanswered", self._client.num_open)
        self._server.should_exit = True


def heard(link: EngineLink, listeners: Sequence[Listener]) -> EngineLink:
    """A link whose requests the listeners hear of."""
    for listener in listeners:
        link = ListenedLink(link, listener)
    return link


async def serve(start: FrontendStart) -> None:
    """Until the collector asks to leave, or a signal."""
    context = zmq.asyncio.Context()
    parallel, level = start.config.parallel, start.config.observe.log_requests
    links = Links(lambda replica, life: Link(context, start.endpoints, start.index, replica, life), parallel.replicas)
    collector = CollectorLink(context, start.endpoints, start.index)
    log_requests = RequestLog(level)
    tracing = open_tracing(start.config.observe, start.config.model.name or start.name)
    folder = crash_dump_folder(start.config.observe)
    dump = None if folder is None else CrashDump(folder, f"frontend-{start.index}")
    listeners = [one for one in (log_requests if level else None, tracing, dump) if one is not None]
    client = EngineClient(
        [heard(link, listeners) for link in links],
        frontend=start.index,
        stats=collector.record,
        stories=collector.tell,
        parallel=parallel,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            build_app(
                start.config,
                client,
                collector,
                log_requests.load_text,
                http=collector.record if start.config.observe.metrics else None,
            ),
            http="httptools",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=CLOSE_S,
        )
    )
    frontend = Frontend(client, links, listeners, server)
    for link in links:
        await link.greet()
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(collector.run(frontend))
        await server.serve(sockets=[socket.socket(fileno=start.socket_fd)])
        listening.cancel()
    for link in links:
        link.close()
    collector.close()
    if tracing is not None:
        tracing.close()
    context.term()


def main() -> None:
    """The frontend process: reads a FrontendStart from standard input."""
    start = read_start(sys.stdin.buffer, FrontendStart)
    exit_with_parent(sys.stdin.buffer)
    log.configure(start.config.observe, f"frontend-{start.index}")
    gc_pauses.watch(start.config.observe.gc_warning_s)
    gc.freeze()  # what was imported lives as long as the process: no collection need visit it
    uvloop.run(serve(start))


if __name__ == "__main__":
    main()
