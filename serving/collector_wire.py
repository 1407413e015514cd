"""What frontends and the collector say to each other: tagged structs in MessagePack over DEALER and ROUTER."""

from typing import Literal

from msgspec import Struct

from scheduler.commands import Story
from serving.protocol.collector import Health, Load

MAX_QUESTION_BYTES = 4096
MAX_ANSWER_BYTES = 16 * 2**20


class Hello(Struct, frozen=True, tag="hello"):
    """A frontend is there; answered with the newest News, as is every change afterwards."""


class Ask(Struct, frozen=True, tag="ask"):
    """One question; exactly one answer with the same ``call`` follows."""

    call: int
    what: Literal["metrics", "loads"]


class Find(Struct, frozen=True, tag="find"):
    """Ask what became of the ended requests whose ``rid`` or ``group`` is exactly this."""

    call: int
    rid: str


class Beat(Struct, frozen=True, tag="beat"):
    """A sign of life, about once a second."""

    waiting: list[int]
    """Requests of this frontend that have no terminal answer yet, of each replica."""


class FreezeEverywhere(Struct, frozen=True, tag="freeze_everywhere"):
    """Have every frontend freeze its garbage collector."""


Question = Hello | Ask | Find | Beat | FreezeEverywhere


class HttpStats(Struct, frozen=True, tag="http"):
    """An HTTP exchange begins or, with a status, has ended. Pushed to where engines push their figures."""

    endpoint: str
    """The route as it is declared."""
    method: str
    status: int | None = None
    seconds: float = 0.0


class Told(Struct, frozen=True, tag="told"):
    """What became of a request. Pushed to where engines push their figures."""

    story: Story


class MetricsAnswer(Struct, frozen=True, tag="metrics"):
    """The Prometheus exposition."""

    call: int
    body: bytes


class LoadsAnswer(Struct, frozen=True, tag="loads"):
    """One entry a replica."""

    call: int
    loads: list[Load]


class FoundAnswer(Struct, frozen=True, tag="found"):
    """Those that are remembered; may be none."""

    call: int
    stories: list[Story]


class News(Struct, frozen=True, tag="news"):
    """The service's health changed."""

    health: Health


class ReplicaLoad(Struct, frozen=True, array_like=True):
    """How busy one replica was when it last reported."""

    replica: int
    time_ns: int = 0
    """By the engine's clock; commands received until then are counted."""
    requests: int = 0
    """Running and waiting."""
    waiting: int = 0
    tokens: int = 0
    """Of pages in use and of prompts that wait."""


class Loads(Struct, frozen=True, tag="loads_changed"):
    """Some replicas have reported; told where there are several, at most every so often."""

    loads: list[ReplicaLoad]


class Leave(Struct, frozen=True, tag="leave"):
    """Finish what runs and exit, within ``timeout_s``."""

    timeout_s: float


class Freeze(Struct, frozen=True, tag="freeze"):
    """Freeze the garbage collector."""


Answer = MetricsAnswer | LoadsAnswer | FoundAnswer | News | Loads | Leave | Freeze
