"""The frontend's end of the wire to one engine: commands out, messages in, over a ZeroMQ DEALER.

ZeroMQ does not say when the peer dies; the launcher does, and ``fail`` passes it on.
"""

import asyncio
from typing import Final

import msgspec
import zmq
import zmq.asyncio

from scheduler.commands import Command, Message
from scheduler.start import Endpoints, frontend_id
from serving.engine_wire import EngineGone

MAX_MESSAGE_BYTES: Final = 256 * 2**20
MAX_WAITING: Final = 65_536
MAX_BURST: Final = 16
"""Messages taken without a pause when they wait already: the event loop has others to serve."""


class Link:
    """One engine, seen from frontend ``index``. Belongs to one event loop."""

    def __init__(
        self, context: zmq.asyncio.Context, endpoints: Endpoints, index: int, replica: int = 0, life: int = 0
    ) -> None:
        self.undecodable = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
        self._gone: str | None = None
        self._pending: asyncio.Future[bytes] | None = None
        self._burst = 0
        self._socket = context.socket(zmq.DEALER)
        for option, value in (
            (zmq.IDENTITY, frontend_id(index)),
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
            (zmq.SNDHWM, MAX_WAITING),
            (zmq.RCVHWM, MAX_WAITING),
            (zmq.RECONNECT_IVL, 50),
        ):
            self._socket.set(option, value)
        self._socket.connect(endpoints.engine(replica, life))

    async def greet(self) -> None:
        """Make this frontend known; the engine answers with its newest Progress or Ready."""
        await self._socket.send(b"")

    async def send(self, command: Command) -> None:
        """Queue one command; waits when the engine is far behind.

        Raises:
          EngineGone: the engine has died.
        """
        if self._gone is not None:
            raise EngineGone(self._gone)
        await self._socket.send(self._encoder.encode(command))

    async def receive(self) -> Message:
        """The next message; what arrived before the engine died still comes.

        Raises:
          EngineGone: the engine has died and nothing is left. For one reader at a time.
        """
        while True:
            frame = await self._next()
            try:
                return self._decoder.decode(frame)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.undecodable += 1

    def fail(self, reason: str) -> None:
        """The engine has died, for ``reason``."""
        self._gone = reason
        if self._pending is not None:
            self._pending.cancel()

    def close(self) -> None:
        """Close the socket at once; may be called twice."""
        self._socket.close(linger=0)

    async def _next(self) -> bytes:
        if self._gone is None:
            pending = self._pending = asyncio.ensure_future(self._socket.recv())
            self._burst = self._burst + 1 if pending.done() else 0
            try:
                if self._burst >= MAX_BURST:
                    self._burst = 0
                    await asyncio.sleep(0)
                return await pending
            except asyncio.CancelledError:
                if self._gone is None:
                    raise
            finally:
                self._pending = None
        try:
            return await self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            self.close()
            raise EngineGone(self._gone) from None
