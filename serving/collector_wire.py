"""What frontends and the collector say to each other: tagged structs in MessagePack over DEALER and ROUTER."""

from typing import Literal

from msgspec import Struct

from serving.protocol.collector import Health, Load

MAX_QUESTION_BYTES = 4096
MAX_ANSWER_BYTES = 16 * 2**20


class Hello(Struct, frozen=True, tag="hello"):
    """A frontend is there; answered with the newest News, as is every change afterwards."""


class Ask(Struct, frozen=True, tag="ask"):
    """One question; exactly one answer with the same ``call`` follows."""

    call: int
    what: Literal["metrics", "loads"]


class Beat(Struct, frozen=True, tag="beat"):
    """A sign of life, about once a second."""

    waiting: int
    """Requests of this frontend that have no terminal answer yet."""


Question = Hello | Ask | Beat


class MetricsAnswer(Struct, frozen=True, tag="metrics"):
    """The Prometheus exposition."""

    call: int
    body: bytes


class LoadsAnswer(Struct, frozen=True, tag="loads"):
    """One entry a replica."""

    call: int
    loads: list[Load]


class News(Struct, frozen=True, tag="news"):
    """The service's health changed."""

    health: Health


class Leave(Struct, frozen=True, tag="leave"):
    """Finish what runs and exit, within ``timeout_s``."""

    timeout_s: float


Answer = MetricsAnswer | LoadsAnswer | News | Leave
