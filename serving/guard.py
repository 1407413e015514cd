"""The gate before every route: header limits, host, keys, request ids. Plain ASGI, and closed unless told otherwise.

Access is decided on ``scope["path"]`` alone, before routing. A path needs the API key unless it is listed as open; the
administrative ones need the admin key or, where none is configured, a caller on this machine.
"""

import re
import secrets
import time
from collections.abc import MutableMapping
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.schema import Serving
from serving.dashboard_files import page_files
from serving.protocol import errors
from serving.protocol.errors import RequestError, invalid

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics", *page_files()})
"""The live page is no secret; what it shows comes by routes that are not open."""
ADMIN_PATHS = frozenset(
    {
        "/flush_cache",
        "/reset_prefix_cache",
        "/abort_request",
        "/start_profile",
        "/stop_profile",
        "/hicache/storage-backend",
        "/hicache/storage-backend/clear",
        "/clear_hicache_storage_backend",
        "/pause_generation",
        "/continue_generation",
        "/freeze_gc",
        "/debug/state",
        "/set_internal_state",
        "/start_expert_distribution_record",
        "/stop_expert_distribution_record",
        "/dump_expert_distribution_record",
        "/rebalance_experts",
    }
)
MAX_HEADERS = 256
MAX_HEADER_BYTES = 65_536

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Guard:
    """Middleware; answers what may not pass, and echoes ``x-request-id`` on what may."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in serving.allowed_hosts)
        self._api_key = _digest(serving.api_key)
        self._admin_key = _digest(serving.admin_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let pass, refuse, or (web sockets, of which there are none) close."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own_id, received_ns = f"req-{secrets.token_hex(12)}", time.monotonic_ns()
        try:
            self._check_size(scope)
            headers = Headers(scope=scope)
            given_id = _given_id(headers)
            self._check_host(headers)
            self._check_key(scope, headers)
        except RequestError as error:
            await errors.response(error)(scope, receive, _echoing(send, own_id))
            return
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["received_ns"] = received_ns
        state["request_id"] = given_id or own_id
        state["given_id"] = given_id
        await self._app(scope, receive, _echoing(send, given_id or own_id))

    def _check_size(self, scope: Scope) -> None:
        pairs: list[tuple[bytes, bytes]] = scope["headers"]
        if len(pairs) > MAX_HEADERS or sum(len(name) + len(value) for name, value in pairs) > MAX_HEADER_BYTES:
            raise RequestError(431, "request_too_large", "The request's headers are too large.")

    def _check_host(self, headers: Headers) -> None:
        if self._hosts and _host_name(headers.get("host", "")) not in self._hosts:
            raise invalid("This Host is not served here.", code="invalid_host")

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        path: str = scope["path"]
        if path in OPEN_PATHS:
            return
        given = _digest(_bearer(headers)) or b""
        is_admin = self._admin_key is not None and compare_digest(given, self._admin_key)
        if path in ADMIN_PATHS and not is_admin and (self._admin_key is not None or not _is_local(scope, headers)):
            raise RequestError(403, "forbidden", "This needs the admin key.")
        if self._api_key is not None and not is_admin and not compare_digest(given, self._api_key):
            raise RequestError(401, "invalid_api_key", "The API key is missing or wrong.")


def _digest(key: str | None) -> bytes | None:
    """Keys are compared as digests, so that neither length nor content shows in the time it takes."""
    return None if key is None else sha256(key.encode()).digest()


def _bearer(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def _given_id(headers: Headers) -> str | None:
    given = headers.get("x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given) is None:
        raise invalid("x-request-id must be 1 to 128 visible ASCII characters.", "x-request-id")
    return given


def _host_name(host: str) -> str:
    """A Host header without its port."""
    return re.sub(r":\d+$", "", host).strip("[]").lower()


def _is_local(scope: Scope, headers: Headers) -> bool:
    """Whether the caller is on this machine; a proxy that forwards for others is not believed."""
    client = scope.get("client")
    if client is None or "x-forwarded-for" in headers or "forwarded" in headers:
        return False
    try:
        return ip_address(client[0]).is_loopback
    except ValueError:
        return False


def _echoing(send: Send, request_id: str) -> Send:
    header = (b"x-request-id", request_id.encode())

    async def echo(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), header]
        await send(message)

    return echo
