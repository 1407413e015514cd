"""The main of a frontend process: HTTP on the launcher's socket, a link to the engine, a link to the collector."""

import asyncio
import gc
import logging
import socket
import sys
from typing import Final

import uvicorn
import uvloop
import zmq.asyncio

from configs import gc_pauses, log
from scheduler.start import FrontendStart, exit_with_parent, read_start
from serving.app import build_app
from serving.collector_link import CollectorLink
from serving.engine_client import EngineClient
from serving.link import Link
from serving.protocol.collector import Health
from serving.request_log import LoggedLink, RequestLog

KEEP_ALIVE_S: Final = 65
"""Longer than the idle time after which usual proxies close: it is theirs to end a connection."""
CLOSE_S: Final = 3
"""For answers to reach slow readers once everything has ended."""
_LEAVE_POLL_S: Final = 0.05
_LOG: Final = logging.getLogger(__name__)


class Frontend:
    """Passes on what the collector says: to the link, to the client, to the HTTP server."""

    def __init__(self, client: EngineClient, link: Link, server: uvicorn.Server) -> None:
        self._client = client
        self._link = link
        self._server = server
        self._leaving: asyncio.Task[None] | None = None

    def num_waiting(self) -> int:
        """Requests without a terminal answer."""
        return self._client.num_open

    def health_changed(self, health: Health) -> None:
        """Refuse new requests while draining; end all when the engine is dead."""
        if health.state == "draining":
            self._client.drain()
        if health.state == "dead":
            self._link.fail(health.reason)

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


async def serve(start: FrontendStart) -> None:
    """Until the collector asks to leave, or a signal."""
    context = zmq.asyncio.Context()
    link = Link(context, start.endpoints, start.index)
    collector = CollectorLink(context, start.endpoints, start.index)
    log_requests = RequestLog(start.config.observe.log_requests)
    logged = LoggedLink(link, log_requests) if start.config.observe.log_requests else link
    client = EngineClient([logged], frontend=start.index, stats=collector.record, stories=collector.tell)
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
    frontend = Frontend(client, link, server)
    await link.greet()
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(collector.run(frontend))
        await server.serve(sockets=[socket.socket(fileno=start.socket_fd)])
        listening.cancel()
    link.close()
    collector.close()
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
