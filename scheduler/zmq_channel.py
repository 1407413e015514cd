"""The engine's end of the wire over ZeroMQ: commands in, messages out, figures to the collector.

A frame is one MessagePack value of the wire's types. Frontend k is the peer with identity ``frontend_id(k)``;
an empty frame is its greeting, answered with the newest Progress or Ready. What does not decode is dropped
and counted. Sockets belong to the engine's thread; ``wake`` and ``stop`` alone may be called from anywhere.
"""

import contextlib
import logging
import os
from dataclasses import dataclass

import msgspec
import zmq
from msgspec import structs

from scheduler.channel import Origin
from scheduler.commands import FAILED, Command, Message, Progress, Ready, Reports, Shutdown, StepStats, StepTimes
from scheduler.start import Endpoints, frontend_id, frontend_index

MAX_FRAME_BYTES = 128 * 2**20
"""Above the encoding of the longest prompt that the wire allows; a longer frame ends its connection."""
MAX_WAITING_MESSAGES = 65_536
"""Messages held for one frontend that does not read; the next ones are lost to it."""
MAX_WAITING_COMMANDS = 65_536
MAX_COMMANDS_PER_TURN = 4096
"""So that a flood of commands cannot keep the engine from stepping."""
STOPPED: Origin = 0
"""Origin of the Shutdown that ``stop`` makes; it is not answered."""

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class WireCounts:
    """What the channel could not deliver."""

    undecodable: int = 0
    undelivered: int = 0


class ZmqChannel:
    """``scheduler.channel.Channel`` over a ROUTER socket, and a PUSH socket for the collector.

    ``life``: how often this replica was started before; each life has an address of its own, so that nothing meant for
    one reaches the next.
    """

    def __init__(
        self, context: "zmq.Context[zmq.SyncSocket]", endpoints: Endpoints, replica: int, life: int = 0
    ) -> None:
        self._replica = replica
        self.counts = WireCounts()
        self._decoder = msgspec.msgpack.Decoder(Command)
        self._encoder = msgspec.msgpack.Encoder()
        self._frontends: set[Origin] = set()
        self._greeting: bytes | None = None
        self._stopping = False
        self._router = context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 500),
            (zmq.MAXMSGSIZE, MAX_FRAME_BYTES),
            (zmq.SNDHWM, MAX_WAITING_MESSAGES),
            (zmq.RCVHWM, MAX_WAITING_COMMANDS),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.ROUTER_HANDOVER, 1),
        ):
            self._router.setsockopt(option, value)
        self._router.bind(endpoints.engine(replica, life))
        self._stats = context.socket(zmq.PUSH)
        self._stats.setsockopt(zmq.LINGER, 500)
        self._stats.setsockopt(zmq.SNDHWM, MAX_WAITING_MESSAGES)
        self._stats.connect(endpoints.stats)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)

    def receive(self, timeout_s: float | None) -> list[tuple[Origin, Command]]:
        """See ``Channel``. Returns early, perhaps with nothing, after ``wake`` or a dropped frame."""
        events = dict(self._poller.poll(None if timeout_s is None else max(0, round(timeout_s * 1000))))
        if self._wake_read in events:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        received: list[tuple[Origin, Command]] = []
        if self._stopping:
            self._stopping = False
            received.append((STOPPED, Shutdown()))
        if self._router not in events:
            return received
        for _ in range(MAX_COMMANDS_PER_TURN):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            command = self._decode(frames)
            if command is not None:
                received.append(command)
        return received

    def send(self, origin: Origin, message: Message) -> None:
        """See ``Channel``. A frontend that is gone or far behind loses the message; this is counted."""
        self._deliver(origin, self._encoder.encode(message))

    def broadcast(self, message: Message) -> None:
        """See ``Channel``. Progress and Ready go to the collector too, and to frontends that come later."""
        if isinstance(message, Progress | Ready):
            message = structs.replace(message, replica=self._replica)
        body = self._encoder.encode(message)
        if isinstance(message, Progress | Ready):
            self._greeting = body
            self._push(body)
        for origin in self._frontends:
            self._deliver(origin, body)

    def report(self, stats: StepStats | StepTimes | Reports) -> None:
        """Push the engine's figures to the collector. Never blocks; lost when it does not read (totals follow)."""
        self._push(self._encoder.encode(stats))

    def wake(self) -> None:
        """Make ``receive`` return. Safe from any thread and from a signal handler."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full: a wake-up is under way
            os.write(self._wake_write, b"\0")

    def stop(self) -> None:
        """Make ``receive`` return a Shutdown, as if one had come over the wire. As safe as ``wake``."""
        self._stopping = True
        self.wake()

    def close(self) -> None:
        """Close the sockets; what was sent has half a second to leave."""
        self._router.close()
        self._stats.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _decode(self, frames: list[bytes]) -> tuple[Origin, Command] | None:
        origin = frontend_index(frames[0])
        if origin is None or len(frames) != 2:
            self.counts.undecodable += 1
            return None
        if not frames[1]:
            self._greet(origin)
            return None
        try:
            return origin, self._decoder.decode(frames[1])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.counts.undecodable += 1
            if self.counts.undecodable == 1:
                _LOG.warning("dropped an undecodable frame from frontend %d: %s", origin, error)
            return None

    def _greet(self, origin: Origin) -> None:
        self._frontends.add(origin)
        if self._greeting is not None:
            self._deliver(origin, self._greeting)

    def _deliver(self, origin: Origin, body: bytes) -> None:
        try:
            self._router.send_multipart((frontend_id(origin), body), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            if self.counts.undelivered == 0:
                _LOG.error("frontend %d does not take its messages: %s", origin, error)
            self.counts.undelivered += 1

    def _push(self, body: bytes) -> None:
        with contextlib.suppress(zmq.Again):
            self._stats.send(body, zmq.NOBLOCK)


def last_words(endpoints: Endpoints, reason: str, replica: int = 0) -> None:
    """Tell the collector why this process ends, from any thread: for when the channel's own can do nothing more."""
    context: zmq.Context[zmq.SyncSocket] = zmq.Context()
    with context.socket(zmq.PUSH) as socket:
        socket.connect(endpoints.stats)
        failed = Progress(stage=FAILED, done=0, total=0, detail=reason, replica=replica)
        socket.send(msgspec.msgpack.encode(failed))
        socket.close(linger=1000)
    context.term()
