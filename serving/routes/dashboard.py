"""The live page and what feeds it: frames of every engine, as server-sent events."""

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator
from typing import Final

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from scheduler.commands import Frame
from serving.dashboard_files import HEADERS, PageFile, page_files
from serving.front import Front
from serving.protocol.errors import RequestError, unavailable
from serving.protocol.sse import frame

MAX_WATCHERS: Final = 4
"""Of one frontend."""
PAUSE_S: Final = 0.5
"""Between two frames of one watcher."""
TREE_EVERY: Final = 4
"""Frames from one look at the prefix tree to the next."""
STALL_S: Final = 30.0
"""A watcher that takes nothing for so long is sent away."""

_log = logging.getLogger(__name__)


class Feed:
    """An ASGI application: one watcher's events.

    Each watcher asks the engines by itself for what happened since it last asked. A slow one asks less often, and what
    an engine's ring no longer has is lost to it; nobody keeps anything for anybody.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._watchers = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send frames until the watcher or the service goes; a refusal is raised for the application to write."""
        if self._watchers >= MAX_WATCHERS:
            raise unavailable("too_many_watchers", f"{MAX_WATCHERS} pages watch this process already.", 10)

        async def patiently(message: Message) -> None:
            async with asyncio.timeout(STALL_S):
                await send(message)

        self._watchers += 1
        headers = {**HEADERS, "x-accel-buffering": "no"}
        response = StreamingResponse(self._events(), media_type="text/event-stream", headers=headers)
        try:
            await response(scope, receive, patiently)
        except (TimeoutError, ClientDisconnect):
            _log.info("a watcher of the live page has left")
        finally:
            self._watchers -= 1

    async def _events(self) -> AsyncGenerator[bytes]:
        client, since_ns = self._front.client, 0
        for turn in itertools.count():
            frames = await self._look(since_ns, tree=turn % TREE_EVERY == 0)
            # replicas run on one machine, whose clock they share
            since_ns = min((one.now_ns for one in frames), default=since_ns)
            body = {"health": await self._front.collector.health(), "frames": frames}
            yield frame(msgspec.json.encode(body))
            if client.draining or client.dead is not None:
                return
            await asyncio.sleep(PAUSE_S)

    async def _look(self, since_ns: int, *, tree: bool) -> list[Frame]:
        """Nothing while there is no engine to ask, or it is busy with a long step."""
        try:
            return await self._front.client.look(since_ns, tree=tree)
        except RequestError as error:
            _log.info("no frame for the live page: %s", error.message)
            return []


def routes(front: Front) -> list[Route]:
    """The table of this module."""
    feed = Feed(front)

    async def events(_: Request) -> Feed:
        return feed

    return [
        *(_file_route(path, file) for path, file in page_files().items()),
        Route("/dashboard/events", events, methods=["GET"]),
    ]


def _file_route(path: str, file: PageFile) -> Route:
    async def serve(_: Request) -> Response:
        return Response(file.body, headers={**HEADERS, "content-type": file.kind})

    return Route(path, serve, methods=["GET"])
