"""What a frontend asks of the collector, and what it is told."""

from typing import Literal, Protocol

from msgspec import Struct

from scheduler.commands import Story


class Load(Struct, frozen=True, kw_only=True):
    """How busy one replica is."""

    dp_rank: int
    num_reqs: int
    """Running and waiting."""
    num_running_reqs: int
    num_waiting_reqs: int
    num_tokens: int
    """Pages in use × page size, and the prompt tokens that wait."""
    num_pending_tokens: int
    ts_tic: float
    """Seconds since the epoch at which the replica said so."""
    token_usage: float = 0.0
    """Share of its KV pool that running requests hold, 0 to 1."""


ReplicaState = Literal["starting", "ready", "stuck", "dead"]


class ReplicaHealth(Struct, frozen=True, kw_only=True):
    """Whether one engine makes progress."""

    dp_rank: int
    state: ReplicaState
    reason: str
    """Why it is stuck or dead or, while it is started again, why it had ended."""
    restarts: int


class Health(Struct, frozen=True, kw_only=True):
    """Whether the service makes progress."""

    state: Literal["starting", "ready", "draining", "stuck", "dead"]
    stage: str = ""
    """While starting: what it does."""
    done: int = 0
    total: int = 0
    reason: str = ""
    retry_after_s: float = 1.0
    replicas: tuple[ReplicaHealth, ...] = ()


class CollectorClient(Protocol):
    """The frontend's end of the wire to the collector."""

    async def metrics(self) -> bytes:
        """The registry in Prometheus text format."""
        ...

    async def loads(self) -> list[Load]:
        """One entry a replica."""
        ...

    async def explain(self, rid: str) -> list[Story]:
        """What became of ended requests with this id, as far as it is remembered."""
        ...

    async def freeze_gc(self) -> None:
        """Have every frontend freeze its garbage collector."""
        ...

    async def health(self) -> Health:
        """The state of the service as a whole."""
        ...
