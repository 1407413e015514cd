"""What the routes share: the launch file, the engines, the collector, and the model's text side once it is there."""

import asyncio
import contextlib
import re
import secrets
import time
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from configs.schema import EngineConfig
from serving.engine_client import EngineClient
from serving.protocol.collector import CollectorClient
from serving.protocol.convert import Origin
from serving.protocol.errors import RequestError, model_not_found, unavailable
from serving.protocol.fields import UnknownFields, decode_request
from serving.text_side import TextSide

_T = TypeVar("_T")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TEXT_S = 10.0
"""Frontends read the model's folder at about the same time."""
_BODY_PAUSE_S = 60.0
"""A client that sends nothing of its body for this long has stalled."""


class Front:
    """One frontend process, as its routes see it."""

    def __init__(self, config: EngineConfig, client: EngineClient, collector: CollectorClient) -> None:
        self.config = config
        self.client = client
        self.collector = collector
        self.text: TextSide | None = None
        """None until the engine is ready and the model's folder was read."""
        self._has_text = asyncio.Event()
        self.created = int(time.time())
        self._unknown = UnknownFields(config.serving.strict_request_fields)

    async def need_text(self) -> TextSide:
        """The text side, or the reason why there is none yet."""
        self.client.check_open()
        text = self.text
        if text is None:
            health = await self.collector.health()
            if health.state == "ready":
                # clients were told so by a frontend that was quicker
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._has_text.wait(), _TEXT_S)
            text = self.text
            if text is None:
                stage = f" ({health.stage})" if health.stage else ""
                raise unavailable("loading", f"The model is still loading{stage}.", health.retry_after_s)
        return text

    def give_text(self, text: TextSide) -> None:
        """The model's folder was read."""
        self.text = text
        self._has_text.set()

    def now(self) -> int:
        """Seconds since the epoch."""
        return int(time.time())

    def served_names(self, text: TextSide) -> tuple[str, ...]:
        """The names under which the model answers; the first is its own."""
        return (text.ready.served_name, *self.config.model.aliases)

    def check_model(self, name: str | None, text: TextSide) -> str:
        """The name to answer with; refuses names that are not served, alone or before an adapter's."""
        if name is None:
            return self.served_names(text)[0]
        known = name in self.served_names(text) or self.adapter(name, text) is not None
        if not known and not self.config.serving.accept_any_model:
            raise model_not_found(name)
        return name

    def adapter(self, name: str | None, text: TextSide) -> str | None:
        """The adapter that ``name`` asks for, as ``model:adapter``; whether it is loaded, the engine knows."""
        names = self.served_names(text)
        model, _, adapter = (name or "").rpartition(":")
        return adapter if adapter and model in names and name not in names else None

    def origin(
        self, request: Request, text: TextSide, rid: str | None, prefix: str, adapter: str | None = None
    ) -> Origin:
        """Ids of a call: the client's where it gave one, else our own."""
        return Origin(
            group=rid or request.state.given_id or f"{prefix}-{secrets.token_hex(12)}",
            suffix=secrets.token_hex(4),
            defaults=text.defaults,
            limits=text.limits,
            adapter=adapter,
            trace=_traceparent(request.headers.get("traceparent")),
        )

    async def read(self, request: Request, kind: type[_T], unsupported: dict[str, tuple[object, ...]]) -> _T:
        """The checked body of a request."""
        return decode_request(await self.read_body(request), kind, self._unknown, unsupported)

    async def read_body(self, request: Request) -> bytes:
        """The body, within its limits of size and time. Anything but JSON is refused."""
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise RequestError(415, "unsupported_media_type", "The body must be application/json.")
        limit = self.config.serving.max_body_bytes
        too_large = RequestError(413, "request_too_large", f"The body is larger than {limit} bytes.")
        announced = request.headers.get("content-length", "0")
        if announced.isascii() and announced.isdigit() and int(announced[:19]) > limit:
            raise too_large
        parts: list[bytes] = []
        size = 0
        stream = request.stream()
        try:
            while True:
                async with asyncio.timeout(_BODY_PAUSE_S):
                    part = await anext(stream, b"")
                if not part:
                    return b"".join(parts)
                size += len(part)
                if size > limit:
                    raise too_large
                parts.append(part)
        except TimeoutError:
            raise RequestError(408, "request_timeout", "The body did not arrive in time.") from None
        except ClientDisconnect:
            raise RequestError(400, "client_closed", "The client left.") from None


def _traceparent(given: str | None) -> str | None:
    """A header as W3C has it; anything else is as if there were none."""
    return given if given is not None and _TRACEPARENT.fullmatch(given) else None
