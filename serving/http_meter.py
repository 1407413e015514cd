"""Tells the collector of every HTTP exchange: its route as declared, its method, its status, how long it took."""

import time
from collections.abc import Callable, Sequence
from typing import Final

from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.collector_wire import HttpStats

HttpSink = Callable[[HttpStats], None]
METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
UNKNOWN: Final = "other"
"""Route or method of what is not served; clients choose those freely, and labels must not be theirs to choose."""
FAILED: Final = 500
"""What is raised becomes this outside of all middleware."""
GONE: Final = 499
"""Status of an exchange without a response: the client left first."""


class HttpMeter:
    """Middleware before all others.

    Args:
        app: what answers.
        routes: what is served.
        sink: takes one message when an exchange begins and one when it has ended. Must not block.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], sink: HttpSink) -> None:
        self._app = app
        known = [route for route in routes if isinstance(route, Route | Mount)]
        self._plain = {route.path for route in known if isinstance(route, Route) and "{" not in route.path}
        self._patterns = [route for route in known if isinstance(route, Mount) or "{" in route.path]
        self._sink = sink

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and watch for the status."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint = self._route(scope)
        method: str = scope["method"] if scope["method"] in METHODS else UNKNOWN
        began_s, status = time.monotonic(), GONE

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._sink(HttpStats(endpoint, method))
        try:
            await self._app(scope, receive, watch)
        except Exception:
            status = FAILED
            raise
        finally:
            self._sink(HttpStats(endpoint, method, status, time.monotonic() - began_s))

    def _route(self, scope: Scope) -> str:
        path: str = scope["path"]
        if path in self._plain:
            return path
        found = (route.path for route in self._patterns if route.matches(scope)[0] is not Match.NONE)
        return next(found, UNKNOWN)
