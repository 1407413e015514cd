"""Runs one HTTP call on the engine: opens it, watches for a client that leaves, writes what comes, ends it once."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from configs.schema import Serving
from scheduler.commands import AbortCause, FinishReason
from serving.answer import Answer, Ending, Piece, TextDelta
from serving.call import Call, ClientGone
from serving.engine_client import EngineClient
from serving.protocol import errors
from serving.protocol.convert import Work
from serving.protocol.errors import RequestError
from serving.protocol.reply import RUNNING_TIMEOUT, Writer, merge
from serving.protocol.sse import DONE, KEEP_ALIVE, frame
from serving.tokenizer import Tokenizer

_SETTLE_S = 2.0
"""How long a reply waits for the engine's account of a choice that a stop string ended."""
_log = logging.getLogger("serving.delivery")
_EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Delivery:
    """An ASGI application for one call: the response of the generating endpoints.

    ``abort_fails``: an aborted choice makes the reply an error; otherwise it is one more way to end.
    """

    def __init__(
        self,
        client: EngineClient,
        serving: Serving,
        works: Sequence[Work],
        writer: Writer,
        tokenizer: Tokenizer,
        *,
        endpoint: str,
        stream: bool,
        abort_fails: bool,
    ) -> None:
        self._client = client
        self._serving = serving
        self._requests = [work.generate for work in works]
        self._writer = writer
        self._endpoint = endpoint
        self._deliver = self._stream if stream else self._whole
        self._abort_fails = abort_fails
        self._answers = [
            Answer(
                index,
                work.generate.rid,
                len(work.generate.prompt),
                tokenizer.detokenizer(skip_special_tokens=work.skip_special_tokens),
                work.stops,
                keep_stop=work.keep_stop,
            )
            for index, work in enumerate(works)
        ]
        self._open = len(works)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; a ``RequestError`` before the first byte is raised for the application to write."""
        watcher: asyncio.Task[None] | None = None
        try:
            call = await self._client.open(self._requests, self._endpoint, scope["state"]["received_ns"])
            watcher = asyncio.create_task(_watch(receive, call))
            await self._deliver(call, scope, receive, send)
        except ClientGone:
            _log.info("client left %s; aborted", self._requests[0].rid)
        finally:
            if watcher is not None:
                watcher.cancel()
            self._client.abandon(self._requests)

    async def _whole(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        deltas: list[list[TextDelta]] = [[] for _ in self._answers]
        while self._open:
            for delta in await self._read(await call.take(None)):
                deltas[delta.index].append(delta)
        await self._settle()
        body = self._writer.body(self._answers, [merge(each) for each in deltas])
        await Response(body, media_type="application/json")(scope, receive, send)

    async def _stream(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        """Headers wait for the first news, so that a refusal still has its own status."""
        keep_alive = self._serving.keep_alive_s or None
        pieces = await call.take(keep_alive)
        await send({"type": "http.response.start", "status": 200, "headers": _EVENT_HEADERS})
        data = self._writer.opening()
        try:
            while True:
                data += b"".join([self._event(delta) for delta in await self._read(pieces)])
                if not self._open:
                    break
                if not pieces:
                    data = data or KEEP_ALIVE
                if data:
                    await self._send(send, data, more_body=True)
                data = b""
                pieces = await call.take(keep_alive)
            if data and self._unsettled:
                await self._send(send, data, more_body=True)
                data = b""
            await self._settle()
            data += self._writer.closing(self._answers) + DONE
        except RequestError as error:
            data += frame(errors.body(error)) + DONE
        await self._send(send, data, more_body=False)

    @property
    def _unsettled(self) -> list[Answer]:
        """Those ended by a stop string, whose account the engine has not given yet, where that is to be shown."""
        if not self._writer.shows_waits:
            return []
        return [answer for answer in self._answers if answer.stop is not None and answer.waits_s is None]

    async def _settle(self) -> None:
        """Wait for the engine's accounts; what does not come in time is not shown."""
        chronicle = self._client.chronicle
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                for answer in self._unsettled:
                    await chronicle.settled(answer.rid)
                    answer.waits_s = chronicle.waits_s(answer.rid)

    def _event(self, delta: TextDelta) -> bytes:
        return self._writer.event(self._answers[delta.index], delta)

    async def _read(self, pieces: dict[int, Piece]) -> list[TextDelta]:
        """Pieces to deltas; stop strings go back to the engine."""
        deltas: list[TextDelta] = []
        for index, piece in pieces.items():
            answer = self._answers[index]
            if answer.ended:
                continue
            delta = answer.push(piece)
            if piece.finished is not None:
                answer.waits_s = self._client.chronicle.waits_s(answer.rid)
            if answer.stop is not None:
                await self._client.stop(answer.stop)
            if delta.ending is not None:
                self._open -= 1
                if delta.ending.reason is FinishReason.ABORT and self._abort_fails:
                    raise self._aborted(delta.ending)
            deltas.append(delta)
        return deltas

    def _aborted(self, ending: Ending) -> RequestError:
        if ending.cause is AbortCause.RUNNING_TIMEOUT:
            return errors.unavailable("running_timeout", RUNNING_TIMEOUT, ending.retry_after_s or 1)
        if self._client.draining:
            return errors.unavailable("draining", "The service shut down before the request was done.", 5)
        return errors.invalid("The request was aborted.", code="aborted")

    async def _send(self, send: Send, data: bytes, *, more_body: bool) -> None:
        """Send a part of the body; a reader that takes nothing for too long has left."""
        try:
            async with asyncio.timeout(self._serving.stall_timeout_s or None):
                await send({"type": "http.response.body", "body": data, "more_body": more_body})
        except TimeoutError:
            raise ClientGone from None


async def _watch(receive: Receive, call: Call) -> None:
    """End the call when the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    call.fail(ClientGone())
