"""The hosts of one engine: what they agree on before they serve, and the Ticks that all of them follow.

Host 0 is the peer that binds; host k connects with the identity ``host_id(k)``. Before the loop begins the hosts
exchange values, each its own for those of all; from then on frames go one way, and each is a Tick. The wire is
trusted to be private; what is not from a known host, or does not decode, is never taken for a Tick.
"""

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import msgspec
import zmq
from msgspec import Struct

from configs.distributed import TICKS, address, listening, together
from configs.errors import ConfigError
from configs.schema import Distributed, HardwareFacts, ModelFacts
from scheduler.port import Answer, OpenPort, Port
from scheduler.start import host_id
from scheduler.tick import Tick

MAX_FRAME_BYTES: Final = 2**30
"""A Tick holds all commands of a turn."""
MAX_WAITING_TICKS: Final = 4096
"""Ticks that a host may be behind: far more than steps can be in flight."""
MAX_EXCHANGED_BYTES: Final = 1 << 20


class HostsError(Exception):
    """The hosts do not hear each other, or not what they should."""


class Said(Struct, frozen=True):
    """One host's part of an exchange."""

    round: int
    value: bytes


class Agreed(Struct, frozen=True):
    """What all of them said, by rank."""

    round: int
    values: list[bytes]


class Hosts(Protocol):
    """The hosts of an engine, as one of them sees them."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def exchange(self, value: bytes) -> list[bytes]:
        """The values of all hosts by rank, once every host has given its own. Blocks; for before the loop."""
        ...

    def port(self, open_port: OpenPort) -> OpenPort:
        """The port for this host's engine; host 0's is around the one that takes commands."""
        ...

    def close(self) -> None:
        """Close the sockets; what was sent has a moment to leave."""
        ...


class OneHost:
    """No others."""

    count = 1

    def exchange(self, value: bytes) -> list[bytes]:
        """See ``Hosts``."""
        return [value]

    def port(self, open_port: OpenPort) -> OpenPort:
        """See ``Hosts``."""
        return open_port

    def close(self) -> None:
        """Nothing to close."""


ONE_HOST: Final = OneHost()


class LeadingHost:
    """Host 0: it gathers, and its Ticks are everybody's."""

    def __init__(self, context: "zmq.Context[zmq.SyncSocket]", distributed: Distributed) -> None:
        self.count = distributed.hosts
        self._others = [host_id(rank) for rank in range(1, self.count)]
        self._round = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._socket = _open(context, zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_EXCHANGED_BYTES)
        self._socket.bind(listening(distributed, TICKS))

    def exchange(self, value: bytes) -> list[bytes]:
        """See ``Hosts``."""
        said: dict[bytes, bytes] = {}
        while len(said) < len(self._others):
            who, *bodies = self._socket.recv_multipart()
            part = _decoded(bodies[-1], Said) if who in self._others and bodies else None
            if part is not None and part.round == self._round:
                said[who] = part.value
        values = [value, *(said[who] for who in self._others)]
        self.send(self._encoder.encode(Agreed(self._round, values)))
        self._round += 1
        return values

    def port(self, open_port: OpenPort) -> OpenPort:
        """See ``Hosts``."""
        return lambda mailbox: LeadingPort(open_port(mailbox), self)

    def broadcast(self, tick: Tick) -> None:
        """Send a turn's input to every other host. Never blocks.

        Raises:
            HostsError: one of them does not take it.
        """
        self.send(self._encoder.encode(tick))

    def send(self, body: bytes) -> None:
        """Send one frame to every other host; see ``broadcast``."""
        for who in self._others:
            try:
                self._socket.send_multipart((who, body), zmq.NOBLOCK)
            except zmq.ZMQError as error:
                if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                    raise
                raise HostsError(f"{who.decode()} does not take its Ticks: {error}") from error

    def close(self) -> None:
        """See ``Hosts``."""
        self._socket.close()


class FollowingHost:
    """Any other host: it does as host 0's Ticks say."""

    def __init__(self, context: "zmq.Context[zmq.SyncSocket]", distributed: Distributed) -> None:
        self.count = distributed.hosts
        self._round = 0
        self._number = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._ticks = msgspec.msgpack.Decoder(Tick)
        self._socket = _open(context, zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, host_id(distributed.rank))
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.connect(address(distributed, TICKS))

    def exchange(self, value: bytes) -> list[bytes]:
        """See ``Hosts``."""
        self._socket.send(self._encoder.encode(Said(self._round, value)))
        agreed = _decoded(self._socket.recv(), Agreed)
        if agreed is None or agreed.round != self._round or len(agreed.values) != self.count:
            raise HostsError("host 0 speaks of something else")
        self._round += 1
        return agreed.values

    def port(self, open_port: OpenPort) -> OpenPort:
        """See ``Hosts``. Nothing is taken from this host's own frontends: there are none."""
        return lambda mailbox: FollowingPort(self.receive)

    def receive(self) -> Tick:
        """The next turn's input. Blocks until host 0 has made it.

        Raises:
            HostsError: one was lost on the way.
        """
        tick = self._ticks.decode(self._socket.recv())
        self._number += 1
        if tick.number != self._number:
            raise HostsError(f"Tick {tick.number} of host 0 arrived where {self._number} should have")
        return tick

    def close(self) -> None:
        """See ``Hosts``."""
        self._socket.close()


class LeadingPort:
    """A ``Port`` whose turns the other hosts get, too."""

    def __init__(self, inner: Port, host: LeadingHost) -> None:
        self._inner = inner
        self._host = host

    def poll(self) -> Tick:
        """See ``Port``."""
        return self._told(self._inner.poll())

    def wait(self, limit_s: float | None = None) -> Tick:
        """See ``Port``."""
        return self._told(self._inner.wait(limit_s))

    def send(self, answers: list[Answer]) -> None:
        """See ``Port``."""
        self._inner.send(answers)

    def _told(self, tick: Tick) -> Tick:
        self._host.broadcast(tick)
        return tick


class FollowingPort:
    """A ``Port`` whose turns are host 0's. When it polled and when it waited was host 0's business, too."""

    def __init__(self, receive: Callable[[], Tick]) -> None:
        self._receive = receive

    def poll(self) -> Tick:
        """See ``Port``. Blocks until host 0 is as far."""
        return self._receive()

    def wait(self, limit_s: float | None = None) -> Tick:
        """See ``Port``."""
        del limit_s
        return self._receive()

    def send(self, answers: list[Answer]) -> None:
        """Host 0 gives the same answers to those who asked."""


def open_hosts(context: "zmq.Context[zmq.SyncSocket]", distributed: Distributed) -> Hosts:
    """This host's place among those of a launch file."""
    if distributed.hosts == 1:
        return ONE_HOST
    return FollowingHost(context, distributed) if distributed.rank else LeadingHost(context, distributed)


def meet(hosts: Hosts, model: ModelFacts) -> None:
    """Wait until every host has fetched the model.

    Raises:
        ConfigError: one of them has another.
    """
    for rank, value in enumerate(hosts.exchange(msgspec.msgpack.encode(model))):
        theirs = msgspec.msgpack.decode(value, type=ModelFacts)
        if theirs != model:
            what = f"host {rank} has another model ({theirs.architecture} of {theirs.num_parameters:,} parameters)"
            raise ConfigError(what, key="model.source", suggestion="give every host the same files")


def pool(hosts: Hosts, machine: HardwareFacts) -> HardwareFacts:
    """What the machines of all hosts are together; on each of them the same.

    Raises:
        ConfigError: they are of different kinds.
    """
    said = hosts.exchange(msgspec.msgpack.encode(machine))
    return together([msgspec.msgpack.decode(value, type=HardwareFacts) for value in said])


Frame = TypeVar("Frame", bound=Struct)


def _decoded(body: bytes, kind: type[Frame]) -> Frame | None:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _open(context: "zmq.Context[zmq.SyncSocket]", kind: int) -> "zmq.SyncSocket":
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.setsockopt(zmq.SNDHWM, MAX_WAITING_TICKS)
    socket.setsockopt(zmq.RCVHWM, MAX_WAITING_TICKS)
    return socket
