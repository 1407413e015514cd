"""Whether the service makes progress, from what was last heard of its engines. Pure: the clock comes in."""

from collections.abc import Sequence
from typing import Final

from scheduler.commands import Progress, StepStats
from serving.protocol.collector import Health, ReplicaHealth, ReplicaState

STUCK_AFTER_S: Final = 120.0
"""No step finished for this long while requests wait: longer than any single compile should take."""
RETRY_STARTING_S: Final = 5.0
RETRY_STUCK_S: Final = 30.0


class ReplicaVitals:
    """Health of one engine, over all its lives."""

    def __init__(self, number: int, now_s: float) -> None:
        self.state: ReplicaState = "starting"
        self.life = 0
        """How often it was started again."""
        self._number = number
        self._reason = ""
        self._pending = 0
        self.paused = False
        """A paused engine need not move."""
        self._waiting: dict[bytes, int] = {}
        self._step = -1
        self._moved_s = now_s

    @property
    def health(self) -> ReplicaHealth:
        """As it is told."""
        return ReplicaHealth(dp_rank=self._number, state=self.state, reason=self._reason, restarts=self.life)

    @property
    def busy(self) -> bool:
        """Whether anything waits for it."""
        return self._pending > 0 or any(self._waiting.values())

    def ready(self, now_s: float) -> None:
        """It serves."""
        self._moved_s = now_s
        if self.state == "starting":
            self.state, self._reason = "ready", ""

    def step(self, stats: StepStats, now_s: float) -> None:
        """It reported: it moves."""
        self._pending = stats.num_running + stats.num_queued
        self.paused = stats.paused
        self._moved_s = now_s
        self._step = stats.step
        if self.state == "stuck":
            self.state, self._reason = "ready", ""

    def beat(self, frontend: bytes, waiting: int, now_s: float) -> None:
        """A frontend has ``waiting`` requests there without a terminal answer."""
        if not self.busy:
            self._moved_s = now_s
        self._waiting[frontend] = waiting

    def check(self, now_s: float) -> None:
        """Notice that it has not moved for too long."""
        if self.paused:
            self._moved_s = now_s
        still_s = now_s - self._moved_s
        if self.state == "ready" and self.busy and still_s > STUCK_AFTER_S:
            self.state = "stuck"
            self._reason = f"requests wait and no step has finished for {still_s:.0f} s (last step: {self._step})"

    def die(self, reason: str) -> None:
        """Its process is gone."""
        self.state, self._reason = "dead", reason
        self._pending, self.paused = 0, False
        self._waiting.clear()

    def begin(self, now_s: float) -> None:
        """Its process is started again; why it had ended is still told until it serves."""
        self.state = "starting"
        self.life += 1
        self._moved_s = now_s


class Vitals:
    """Health of the service: it is ready once all of its engines were, and as long as one of them is."""

    def __init__(self, now_s: float, replicas: int = 1) -> None:
        self.replicas = tuple(ReplicaVitals(number, now_s) for number in range(replicas))
        self._begun = False
        self._progress = Progress(stage="starting processes", done=0, total=0)
        self._draining = False
        self._dead: str | None = None

    @property
    def health(self) -> Health:
        """As it is told."""
        replicas = tuple(replica.health for replica in self.replicas)
        if self._dead is not None:
            return Health(state="dead", reason=self._dead, replicas=replicas)
        if self._draining:
            reason = "the server is shutting down"
            return Health(state="draining", reason=reason, retry_after_s=RETRY_STARTING_S, replicas=replicas)
        if self._begun and any(replica.state == "ready" for replica in replicas):
            return Health(state="ready", replicas=replicas)
        stuck = next((replica for replica in replicas if replica.state == "stuck"), None)
        if stuck is not None:
            return Health(state="stuck", reason=stuck.reason, retry_after_s=RETRY_STUCK_S, replicas=replicas)
        return Health(
            state="starting",
            stage=stage_of(self._progress),
            done=self._progress.done,
            total=self._progress.total,
            retry_after_s=RETRY_STARTING_S,
            replicas=replicas,
        )

    @property
    def serving(self) -> tuple[int, ...]:
        """Engines that listen."""
        return tuple(number for number, one in enumerate(self.replicas) if one.state in ("ready", "stuck"))

    @property
    def paused(self) -> bool:
        """Whether generation stands still on command."""
        return any(replica.paused for replica in self.replicas)

    def progress(self, progress: Progress) -> None:
        """Start-up goes on."""
        self._progress = progress

    def ready(self, replica: int, now_s: float) -> None:
        """An engine serves."""
        self.replicas[replica].ready(now_s)
        self._begun = self._begun or all(one.state != "starting" for one in self.replicas)

    def step(self, stats: StepStats, now_s: float) -> None:
        """An engine reported."""
        self.replicas[stats.replica].step(stats, now_s)

    def beat(self, frontend: bytes, waiting: Sequence[int], now_s: float) -> None:
        """A frontend has so many requests at each engine without a terminal answer."""
        for replica, count in zip(self.replicas, waiting, strict=False):
            replica.beat(frontend, count, now_s)

    def check(self, now_s: float) -> None:
        """Notice engines that have not moved for too long."""
        for replica in self.replicas:
            replica.check(now_s)

    def drain(self) -> None:
        """No new requests from now on."""
        self._draining = True

    def die(self, reason: str) -> None:
        """The service ends; there is no way back."""
        self._dead = reason


def stage_of(progress: Progress) -> str:
    """A stage of the start and, of all engines but the first, whose it is."""
    return f"replica {progress.replica}: {progress.stage}" if progress.replica else progress.stage
