"""The other end of the KV events: rebuilds what an engine's cache holds, and asks for what it missed."""

from collections.abc import Iterator
from typing import Final

import msgspec
import zmq

from scheduler.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch, KVEvent, place_of
from scheduler.kv_publisher import END_OF_REPLAY

MAX_BATCH_BYTES: Final = 256 * 2**20
REPLAY_TIMEOUT_S: Final = 5.0


class CacheContent:
    """The blocks of a cache, by medium and page group, from the events about them."""

    def __init__(self) -> None:
        self.blocks: dict[tuple[str, int | None], set[int]] = {}
        """Medium and page group, None for the full one → hashes."""

    def __len__(self) -> int:
        return sum(len(blocks) for blocks in self.blocks.values())

    def apply(self, event: KVEvent) -> None:
        """Take one event; blocks that are unknown can be removed, as by one who came late."""
        match event:
            case BlockStored():
                self.blocks.setdefault(place_of(event), set()).update(event.block_hashes)
            case BlockRemoved():
                self.blocks.setdefault(place_of(event), set()).difference_update(event.block_hashes)
            case AllBlocksCleared():
                self.blocks.clear()


class Subscriber:
    """A SUB socket, and a DEALER for what was missed.

    Args:
        context: of the process.
        endpoint: of the publisher.
        replay_endpoint: of the publisher; None: what is missed is lost.
        topic: beginning of the topics that are wanted.
    """

    def __init__(
        self, context: "zmq.Context[zmq.SyncSocket]", endpoint: str, replay_endpoint: str | None, topic: str = ""
    ) -> None:
        self.lost = 0
        """Batches that were missed and could not be had again."""
        self._next: int | None = 0 if replay_endpoint is not None else None
        self._decoder = msgspec.msgpack.Decoder(EventBatch)
        self._socket = context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BATCH_BYTES)
        self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._socket.connect(endpoint)
        self._replay = None
        if replay_endpoint is not None:
            self._replay = context.socket(zmq.DEALER)
            self._replay.setsockopt(zmq.MAXMSGSIZE, MAX_BATCH_BYTES)
            self._replay.connect(replay_endpoint)

    def receive(self, timeout_s: float | None) -> list[tuple[int, EventBatch]]:
        """The next batch, after those that were missed before it; nothing when ``timeout_s`` passed.

        Raises:
            msgspec.DecodeError: that is no batch of events.
        """
        if not self._socket.poll(None if timeout_s is None else round(timeout_s * 1000)):
            return []
        frames = self._socket.recv_multipart()
        if len(frames) != 3:
            raise msgspec.DecodeError(f"a message of {len(frames)} frames, where 3 are expected")
        number, batch = int.from_bytes(frames[1], "big"), self._decoder.decode(frames[2])
        if self._next is not None and number < self._next:
            return []
        missed = self.catch_up(number) if self._next is not None and number > self._next else []
        self._next = number + 1
        return [*missed, (number, batch)]

    def catch_up(self, until: int | None = None) -> list[tuple[int, EventBatch]]:
        """Ask for the batches not seen yet, below ``until``; those no longer kept are counted as ``lost``."""
        first = self._next or 0
        found = [batch for batch in self._replayed(first) if until is None or batch[0] < until]
        end = until if until is not None else found[-1][0] + 1 if found else first
        self.lost += end - first - len(found)
        self._next = end
        return found

    def close(self) -> None:
        """Close the sockets."""
        self._socket.close(linger=0)
        if self._replay is not None:
            self._replay.close(linger=0)

    def _replayed(self, first: int) -> Iterator[tuple[int, EventBatch]]:
        if self._replay is None:
            return
        self._replay.send_multipart((b"", first.to_bytes(8, "big")))
        while self._replay.poll(round(REPLAY_TIMEOUT_S * 1000)):
            frames = self._replay.recv_multipart()
            if len(frames) != 3 or frames[1] == END_OF_REPLAY:
                return
            yield int.from_bytes(frames[1], "big"), self._decoder.decode(frames[2])
