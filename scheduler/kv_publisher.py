"""Sends KV events to whoever subscribes, over ZeroMQ: topic, sequence number, MessagePack.

A PUB message is ``(topic, number, payload)``, the number 8 bytes big endian, from 0. A DEALER that sends ``(b"",
number)`` to the replay endpoint gets the batches from that number on that are still kept, each as ``(b"", number,
payload)``, and at last the number -1 with nothing.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
import zmq

from configs.errors import ConfigError
from scheduler.kv_events import EventBatch, KVEvent

END_OF_REPLAY: Final = (-1).to_bytes(8, "big", signed=True)
MAX_QUESTION_BYTES: Final = 4096
MAX_UNSENT: Final = 100_000
"""Batches kept for one subscriber that does not read; it misses the next ones and may ask for them."""
_CLOSING_S: Final = 5.0
_LOG = logging.getLogger(__name__)


def endpoint_of(endpoint: str, replica: int) -> str:
    """The address for one of several engines: the port counted up, another file's name."""
    if not replica:
        return endpoint
    scheme, _, place = endpoint.partition("://")
    if scheme != "tcp":
        return f"{endpoint}_dp{replica}"
    host, _, port = place.rpartition(":")
    return f"tcp://{host}:{int(port) + replica}"


def binds(endpoint: str) -> bool:
    """Whether the publisher binds this address rather than connects to it: SGLang's and vLLM's rule."""
    return endpoint.startswith(("ipc://", "inproc://")) or any(mark in endpoint for mark in ("*", "::", "0.0.0.0"))


class KVPublisher:
    """The PUB socket, and a thread that answers for what was missed. Belongs to the engine's thread.

    Args:
        context: of the process.
        endpoint: where subscribers are served (see ``binds``).
        replay_endpoint: where they ask for what they missed, always bound; None: nowhere.
        topic: first frame of every message.
        buffer_batches: newest batches that can be asked for.
        dp_rank: in every batch; None when there is one engine.
        clock: seconds since the epoch.

    Raises:
        ConfigError: an address cannot be used.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.SyncSocket]",
        endpoint: str,
        replay_endpoint: str | None,
        topic: str,
        buffer_batches: int,
        dp_rank: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._topic = topic.encode()
        self._dp_rank = dp_rank
        self._clock = clock
        self._number = 0
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=buffer_batches)
        self._lock = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder()
        self._socket = _opened(context, zmq.PUB, endpoint, "observe.kv_events_endpoint", bind=binds(endpoint))
        self._replay: _Replay | None = None
        if replay_endpoint is not None:
            try:
                router = _opened(context, zmq.ROUTER, replay_endpoint, "observe.kv_events_replay_endpoint", bind=True)
            except ConfigError:
                self.close()
                raise
            self._replay = _Replay(context, router, self._since)

    def publish(self, events: list[KVEvent]) -> None:
        """Send one batch. Never blocks; a subscriber that is far behind misses it."""
        payload = self._encoder.encode(EventBatch(self._clock(), events, self._dp_rank))
        with self._lock:
            number = self._number
            self._number += 1
            self._kept.append((number, payload))
        self._socket.send_multipart((self._topic, number.to_bytes(8, "big"), payload), zmq.NOBLOCK)

    def close(self) -> None:
        """Close the sockets; what was sent has a second to leave."""
        if self._replay is not None:
            self._replay.close()
        self._socket.close(linger=1000)

    def _since(self, number: int) -> list[tuple[int, bytes]]:
        with self._lock:
            return [batch for batch in self._kept if batch[0] >= number]


class _Replay:
    """Answers questions for past batches on a thread of its own."""

    def __init__(
        self,
        context: "zmq.Context[zmq.SyncSocket]",
        router: "zmq.SyncSocket",
        since: Callable[[int], list[tuple[int, bytes]]],
    ) -> None:
        self._since = since
        self._router = router
        address = f"inproc://kv-replay-{id(self)}"
        self._stopped = context.socket(zmq.PAIR)
        self._stopped.bind(address)
        self._stop = context.socket(zmq.PAIR)
        self._stop.connect(address)
        self._thread = threading.Thread(target=self._run, name="kv-replay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.send(b"")
        self._thread.join(_CLOSING_S)
        self._stop.close(linger=0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._stopped, zmq.POLLIN)
        while self._stopped not in (ready := dict(poller.poll())):
            if self._router in ready:
                self._answer(self._router.recv_multipart())
        self._router.close(linger=0)
        self._stopped.close(linger=0)

    def _answer(self, frames: list[bytes]) -> None:
        if len(frames) != 3 or frames[1] or len(frames[2]) != 8:
            _LOG.warning("a question for missed KV events was not understood")
            return
        who = frames[0]
        for number, payload in self._since(int.from_bytes(frames[2], "big")):
            self._router.send_multipart((who, b"", number.to_bytes(8, "big"), payload))
        self._router.send_multipart((who, b"", END_OF_REPLAY, b""))


def _opened(
    context: "zmq.Context[zmq.SyncSocket]", kind: int, endpoint: str, key: str, *, bind: bool
) -> "zmq.SyncSocket":
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, MAX_UNSENT)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_QUESTION_BYTES)
    try:
        (socket.bind if bind else socket.connect)(endpoint)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise ConfigError(f"cannot be used: {error.strerror}", key=key, value=endpoint) from error
    return socket
