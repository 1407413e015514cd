"""The collector: it alone holds the metrics and knows how the whole service fares.

Engines and frontends push figures to it; frontends ask it, and hear of every change of health. It lives in the
launcher, which calls ``turn`` whenever a socket can be read or a moment has passed.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
import zmq

from scheduler.commands import Progress, Ready, StepStats, Story
from scheduler.start import Endpoints, frontend_id
from serving.collector_wire import (
    MAX_QUESTION_BYTES,
    Answer,
    Ask,
    Beat,
    Find,
    FoundAnswer,
    Freeze,
    FreezeEverywhere,
    Hello,
    Leave,
    LoadsAnswer,
    MetricsAnswer,
    News,
    Question,
    Told,
)
from serving.metrics import Metrics, Report
from serving.protocol.collector import Health, Load

STUCK_AFTER_S: Final = 120.0
"""No step finished for this long while requests wait: longer than any single compile should take."""
RETRY_STARTING_S: Final = 5.0
MAX_STORIES: Final = 1024
"""Ended requests that can still be explained."""

_MAX_STAT_BYTES: Final = 1 << 20
_MAX_FRAMES_PER_TURN: Final = 10_000
_MAX_WAITING: Final = 100_000
_LOG: Final = logging.getLogger(__name__)


class Vitals:
    """Health, from what was last heard. Pure: the clock comes in."""

    def __init__(self, now_s: float) -> None:
        self.health = Health(state="starting", stage="starting processes", retry_after_s=RETRY_STARTING_S)
        self._pending = 0
        self._paused = False
        """A paused engine need not move."""
        self._waiting: dict[bytes, int] = {}
        self._step = -1
        self._moved_s = now_s

    def progress(self, progress: Progress) -> None:
        """Start-up goes on."""
        if self.health.state == "starting":
            self.health = Health(
                state="starting",
                stage=progress.stage,
                done=progress.done,
                total=progress.total,
                retry_after_s=RETRY_STARTING_S,
            )

    def ready(self, now_s: float) -> None:
        """The engine serves."""
        self._moved_s = now_s
        if self.health.state == "starting":
            self.health = Health(state="ready")

    def step(self, stats: StepStats, now_s: float) -> None:
        """The engine reported: it moves."""
        self._pending = stats.num_running + stats.num_queued
        self._paused = stats.paused
        self._moved_s = now_s
        self._step = stats.step
        if self.health.state == "stuck":
            self.health = Health(state="ready")

    def beat(self, frontend: bytes, waiting: int, now_s: float) -> None:
        """A frontend has ``waiting`` requests without a terminal answer."""
        if not self.busy:
            self._moved_s = now_s
        self._waiting[frontend] = waiting

    @property
    def busy(self) -> bool:
        """Whether anything waits for the engine."""
        return self._pending > 0 or any(self._waiting.values())

    def check(self, now_s: float) -> None:
        """Notice that nothing has moved for too long."""
        if self._paused:
            self._moved_s = now_s
        still_s = now_s - self._moved_s
        if self.health.state == "ready" and self.busy and still_s > STUCK_AFTER_S:
            reason = f"requests wait and no step has finished for {still_s:.0f} s (last step: {self._step})"
            self.health = Health(state="stuck", reason=reason, retry_after_s=30.0)

    def drain(self) -> None:
        """No new requests from now on."""
        self.health = Health(state="draining", reason="the server is shutting down", retry_after_s=RETRY_STARTING_S)

    def die(self, reason: str) -> None:
        """A process is gone; there is no way back."""
        self.health = Health(state="dead", reason=reason)


class Collector:
    """Sockets, metrics and vitals of the service. ``metrics`` is None where they are switched off."""

    def __init__(
        self,
        context: "zmq.Context[zmq.SyncSocket]",
        endpoints: Endpoints,
        metrics: Metrics | None,
        num_frontends: int,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.vitals = Vitals(clock())
        self.ready: Ready | None = None
        self.last_progress: Progress | None = None
        self.undecodable = 0
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._heard_s = wall_clock()
        self._steps: dict[int, StepStats] = {}
        self._ended: deque[Story] = deque(maxlen=MAX_STORIES)
        self._known = frozenset(frontend_id(index) for index in range(num_frontends))
        self._frontends: set[bytes] = set()
        self._told = self.vitals.health
        self._reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)
        self._questions: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
        self._pull = _bound(context, zmq.PULL, endpoints.stats, _MAX_STAT_BYTES)
        self._router = _bound(context, zmq.ROUTER, endpoints.collector, MAX_QUESTION_BYTES)

    @property
    def sockets(self) -> "tuple[zmq.SyncSocket, zmq.SyncSocket]":
        """What the launcher polls for reading."""
        return self._pull, self._router

    def turn(self) -> None:
        """Take everything that waits, reports before questions, and tell the frontends what changed."""
        # no question is answered with the gauges of an engine that has died since
        self.tell()
        for frames in _waiting(self._pull):
            self._report(frames)
        for frames in _waiting(self._router):
            self._question(frames)
        self.vitals.check(self._clock())
        self.tell()

    def tell(self) -> None:
        """Send the health to every frontend if it changed."""
        if self.vitals.health != self._told:
            self._told = self.vitals.health
            if self._told.state == "dead" and self._metrics is not None:
                self._metrics.gone()
            self._broadcast(News(self._told))

    def leave(self, timeout_s: float) -> None:
        """Ask every frontend to finish and go."""
        self._broadcast(Leave(timeout_s))

    def close(self) -> None:
        """Close the sockets."""
        self._pull.close()
        self._router.close()

    def _report(self, frames: list[bytes]) -> None:
        try:
            report = self._reports.decode(frames[0])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.undecodable += 1
            return
        match report:
            case StepStats():
                self._steps[report.replica] = report
                self._heard_s = self._wall_clock()
                self.vitals.step(report, self._clock())
            case Progress():
                self.last_progress = report
                self.vitals.progress(report)
            case Ready():
                self.ready = report
                self.vitals.ready(self._clock())
            case Told(story=story):
                self._ended.append(story)
            case _:
                pass
        if self._metrics is not None:
            self._metrics.take(report)

    def _question(self, frames: list[bytes]) -> None:
        who = frames[0]
        try:
            question = self._questions.decode(frames[-1])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.undecodable += 1
            return
        if who not in self._known:
            self.undecodable += 1
            return
        match question:
            case Hello():
                self._frontends.add(who)
                self._answer(who, News(self.vitals.health))
            case Ask(call=call, what="metrics"):
                self._answer(who, MetricsAnswer(call, b"" if self._metrics is None else self._metrics.render()))
            case Find(call=call, rid=rid):
                self._answer(
                    who, FoundAnswer(call, [story for story in self._ended if rid in (story.rid, story.group)])
                )
            case Ask(call=call):
                self._answer(who, LoadsAnswer(call, self.loads()))
            case FreezeEverywhere():
                self._broadcast(Freeze())
            case Beat(waiting=waiting):
                self.vitals.beat(who, waiting, self._clock())

    def loads(self) -> list[Load]:
        """The newest load of every replica; zeros before its first step."""
        idle = Load(
            dp_rank=0,
            num_reqs=0,
            num_running_reqs=0,
            num_waiting_reqs=0,
            num_tokens=0,
            num_pending_tokens=0,
            ts_tic=self._heard_s,
        )
        return [
            Load(
                dp_rank=stats.replica,
                num_reqs=stats.num_running + stats.num_queued,
                num_running_reqs=stats.num_running,
                num_waiting_reqs=stats.num_queued,
                num_tokens=stats.tokens_used + stats.waiting_prompt_tokens,
                num_pending_tokens=stats.pending_prompt_tokens,
                ts_tic=self._heard_s,
            )
            for _, stats in sorted(self._steps.items())
        ] or [idle]

    def _broadcast(self, answer: Answer) -> None:
        for who in self._frontends:
            self._answer(who, answer)

    def _answer(self, who: bytes, answer: Answer) -> None:
        try:
            self._router.send_multipart((who, msgspec.msgpack.encode(answer)), zmq.NOBLOCK)
        except zmq.Again:
            _LOG.error("frontend %r does not read its answers", who)


def _bound(context: "zmq.Context[zmq.SyncSocket]", kind: int, address: str, max_bytes: int) -> "zmq.SyncSocket":
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 500)
    socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
    socket.setsockopt(zmq.RCVHWM, _MAX_WAITING)
    socket.bind(address)
    return socket


def _waiting(socket: "zmq.SyncSocket") -> list[list[bytes]]:
    """Frames that can be read now, at most ``_MAX_FRAMES_PER_TURN``."""
    found: list[list[bytes]] = []
    while len(found) < _MAX_FRAMES_PER_TURN:
        try:
            found.append(socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            break
    return found
