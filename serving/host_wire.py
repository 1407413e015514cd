"""What the launchers of several hosts say to each other, and the sockets over which they say it."""

import contextlib
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import msgspec
import zmq
from msgspec import Struct

from configs.distributed import LIFE, address, listening
from configs.schema import Distributed
from scheduler.start import host_id
from serving.plan_check import Digest

MAX_WORD_BYTES: Final = 16 * 2**20
MAX_WAITING: Final = 65_536
MAX_WORDS_PER_TURN: Final = 10_000


class Hello(Struct, frozen=True, tag="hello"):
    """A host that follows is there."""

    versions: str
    config: bytes
    """``configs.distributed.common`` of its launch file."""


class Welcome(Struct, frozen=True, tag="welcome"):
    """All hosts are there: begin."""


class Refused(Struct, frozen=True, tag="refused"):
    """Host 0 does not go with this one."""

    reason: str


class Alive(Struct, frozen=True, tag="alive"):
    """Still there."""


class Planned(Struct, frozen=True, tag="planned"):
    """What a host that follows has planned."""

    digests: list[Digest]


class Differs(Struct, frozen=True, tag="differs"):
    """The plan of this number is another one on the other host; here it is this one."""

    number: int
    plan: bytes | None


class Leaving(Struct, frozen=True, tag="leaving"):
    """A host that follows was told to stop."""


class Ended(Struct, frozen=True, tag="ended"):
    """The service has ended as it should."""


class Dying(Struct, frozen=True, tag="dying"):
    """The service ends, and this is why."""

    reason: str


Word = Hello | Welcome | Refused | Alive | Planned | Differs | Leaving | Ended | Dying


class HostWire:
    """The sockets between this launcher and the others: host 0 hears all, the others hear host 0."""

    def __init__(self, context: "zmq.Context[zmq.SyncSocket]", distributed: Distributed) -> None:
        rank = distributed.rank
        self.others = tuple(range(1, distributed.hosts)) if rank == 0 else (0,)
        """Ranks of those whom this host hears."""
        self._leads = rank == 0
        self._ranks = {host_id(other): other for other in self.others}
        self._words: msgspec.msgpack.Decoder[Word] = msgspec.msgpack.Decoder(Word)
        self.socket = context.socket(zmq.DEALER if rank else zmq.ROUTER)
        """For the poller."""
        for option, value in (
            (zmq.LINGER, 500),
            (zmq.MAXMSGSIZE, MAX_WORD_BYTES),
            (zmq.SNDHWM, MAX_WAITING),
            (zmq.RCVHWM, MAX_WAITING),
        ):
            self.socket.setsockopt(option, value)
        if rank:
            self.socket.setsockopt(zmq.IDENTITY, host_id(rank))
            self.socket.connect(address(distributed, LIFE))
        else:
            self.socket.bind(listening(distributed, LIFE))

    def send(self, rank: int, word: Word) -> None:
        """Queue a word for a host. Never blocks; who does not read misses it, and silence is noticed otherwise."""
        body = msgspec.msgpack.encode(word)
        with contextlib.suppress(zmq.Again):
            self.socket.send_multipart((host_id(rank), body) if self._leads else (body,), zmq.NOBLOCK)

    def receive(self) -> list[tuple[int, Word]]:
        """All that was heard, and from whom; strangers are not."""
        heard: list[tuple[int, Word]] = []
        for _ in range(MAX_WORDS_PER_TURN):
            try:
                *who, body = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            rank = self._ranks.get(who[0]) if who else None if self._leads else 0
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                if rank is not None:
                    heard.append((rank, self._words.decode(body)))
        return heard

    def close(self) -> None:
        """Close the socket; what was sent has a moment to leave."""
        self.socket.close()


def versions() -> str:
    """Of what decides how programs and plans come out."""
    found: list[str] = []
    for name in ("radjax", "jax", "jaxlib"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} unknown")
    return ", ".join(found)
