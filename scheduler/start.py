"""How a child process is told what it is: one struct on its standard input, which then stays open as a lifeline.

The parent never closes the pipe while it lives. When it is gone, however it went, the child reads
end-of-file and leaves: no orphan keeps a device or a port.
"""

import os
import struct
import threading
from typing import IO, BinaryIO, TypeVar

import msgspec
from msgspec import Struct

from configs.schema import EngineConfig
from scheduler.channel import Origin

_LENGTH = struct.Struct("!I")
_MAX_BYTES = 1 << 20
_FRONTEND = b"frontend-"
ORPHANED = 75
"""Exit code of a child whose parent has gone."""

Start = TypeVar("Start", bound=Struct)


class Endpoints(Struct, frozen=True):
    """Addresses of the sockets, all in one private folder."""

    directory: str

    def engine(self, replica: int, life: int = 0) -> str:
        """Commands in, messages out; bound by the engine that was started ``life`` times before."""
        return f"ipc://{self.directory}/engine-{replica}-{life}"

    @property
    def stats(self) -> str:
        """StepStats, RequestStats, Progress and Ready for the collector, which binds it."""
        return f"ipc://{self.directory}/stats"

    @property
    def plans(self) -> str:
        """Plans of the engine for the launcher, which binds it where there are several hosts."""
        return f"ipc://{self.directory}/plans"

    @property
    def collector(self) -> str:
        """Questions of the frontends to the collector, which binds it."""
        return f"ipc://{self.directory}/collector"


def frontend_id(index: Origin) -> bytes:
    """The ZeroMQ identity with which frontend ``index`` connects."""
    return _FRONTEND + str(index).encode()


def frontend_index(identity: bytes) -> Origin | None:
    """The inverse of ``frontend_id``; None for any other identity."""
    digits = identity.removeprefix(_FRONTEND)
    named = identity.startswith(_FRONTEND) and digits.isdigit() and len(digits) <= 4
    return int(digits) if named and frontend_id(int(digits)) == identity else None


def host_id(rank: int) -> bytes:
    """The ZeroMQ identity with which one of several hosts speaks to host 0."""
    return b"host-%d" % rank


class EngineStart(Struct, frozen=True, kw_only=True):
    """What an engine process is given."""

    config: EngineConfig
    name: str
    """The launch file's name: the default of the served model's name."""
    endpoints: Endpoints
    replica: int = 0
    life: int = 0
    """How often it was started before."""
    sharing: int = 1
    """Engines that start on this machine together, and divide the free memory."""


class FrontendStart(Struct, frozen=True, kw_only=True):
    """What a frontend process is given."""

    config: EngineConfig
    name: str
    endpoints: Endpoints
    index: int
    """Its number: the ``Origin`` of its commands."""
    socket_fd: int
    """The listening TCP socket, inherited."""


def write_start(stream: IO[bytes], start: Struct) -> None:
    """Hand ``start`` to the child that reads ``stream``. The stream must be kept open afterwards."""
    body = msgspec.msgpack.encode(start)
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def read_start(stream: BinaryIO, kind: type[Start]) -> Start:
    """Read what ``write_start`` wrote.

    Raises:
      EOFError: the parent went away first.
      ValueError: the length is out of bounds or the body is no ``kind``.
    """
    (size,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if size > _MAX_BYTES:
        raise ValueError(f"a start message of {size} bytes; at most {_MAX_BYTES} are read")
    return msgspec.msgpack.decode(_exactly(stream, size), type=kind)


def exit_with_parent(stream: BinaryIO) -> None:
    """Leave this process at once when the other end of ``stream`` is closed. Returns immediately."""
    descriptor = stream.fileno()

    def watch() -> None:
        # the bare descriptor: a buffered read holds a lock that the interpreter wants when it ends
        while os.read(descriptor, 1):
            pass
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("the parent process closed the pipe before the start message was complete")
    return data
