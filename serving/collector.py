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

from scheduler.commands import FAILED, Progress, Ready, Reports, StepStats, Story
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
    Loads,
    LoadsAnswer,
    MetricsAnswer,
    News,
    Question,
    ReplicaLoad,
    Told,
)
from serving.metrics import Metrics, Report
from serving.protocol.collector import Load
from serving.vitals import Vitals

MAX_STORIES: Final = 1024
"""Ended requests that can still be explained."""
LOADS_EVERY_S: Final = 0.02
"""Between two tellings of how busy the replicas are."""

_MAX_STAT_BYTES: Final = 1 << 20
_MAX_FRAMES_PER_TURN: Final = 10_000
_MAX_WAITING: Final = 100_000
_LOG: Final = logging.getLogger(__name__)


class Collector:
    """Sockets, metrics and vitals of the service.

    Args:
        context: of this process.
        endpoints: the addresses.
        metrics: None where they are switched off.
        num_frontends: who may ask.
        replicas: how many engines there are.
        clock: monotonic seconds.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.SyncSocket]",
        endpoints: Endpoints,
        metrics: Metrics | None,
        num_frontends: int,
        replicas: int = 1,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.vitals = Vitals(clock(), replicas)
        self.readies: dict[int, Ready] = {}
        """What each engine said when it last became ready."""
        self.ready: Ready | None = None
        """What the first said, from when all of them had."""
        self.failures: dict[int, str] = {}
        """Why engines could not start or go on, in their own words."""
        self.last_progress: Progress | None = None
        self.undecodable = 0
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._heard_s = [wall_clock()] * replicas
        self._steps: dict[int, StepStats] = {}
        self._reported: dict[int, ReplicaLoad] = {}
        """Not yet told to the frontends."""
        self._loads_s = 0.0
        self._ended: deque[Story] = deque(maxlen=MAX_STORIES)
        self._known = frozenset(frontend_id(index) for index in range(num_frontends))
        self._frontends: set[bytes] = set()
        self._told = self.vitals.health
        self._leave: Leave | None = None
        """What those who come late are told, too."""
        self._reports: msgspec.msgpack.Decoder[Report | Reports] = msgspec.msgpack.Decoder(Report | Reports)
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
        self._tell_loads()

    @property
    def patience_s(self) -> float | None:
        """How long until something has to be told although nothing is heard; None: not at all."""
        return max(0.0, self._loads_s + LOADS_EVERY_S - self._clock()) if self._reported else None

    def lost(self, replica: int, reason: str) -> None:
        """An engine's process is gone."""
        self.vitals.replicas[replica].die(reason)
        self._steps.pop(replica, None)
        self._reported.pop(replica, None)
        if self._metrics is not None:
            self._metrics.gone(replica)

    def begun(self, replica: int) -> None:
        """An engine's process was started again."""
        self.readies.pop(replica, None)
        self.failures.pop(replica, None)
        self.vitals.replicas[replica].begin(self._clock())

    def tell(self) -> None:
        """Send the health to every frontend if it changed."""
        health = self.vitals.health
        if health != self._told:
            self._told = health
            if health.state == "dead" and self._metrics is not None:
                self._metrics.over()
            self._broadcast(News(health))

    def _tell_loads(self) -> None:
        if self._reported and self._clock() >= self._loads_s + LOADS_EVERY_S:
            self._broadcast(Loads(list(self._reported.values())))
            self._reported.clear()
            self._loads_s = self._clock()

    def leave(self, timeout_s: float) -> None:
        """Ask every frontend to finish and go."""
        self._leave = Leave(timeout_s)
        self._broadcast(self._leave)

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
        for each in report.reports if isinstance(report, Reports) else (report,):
            self._take(each)

    def _take(self, report: Report) -> None:
        match report:
            case StepStats() | Progress() | Ready() if not 0 <= report.replica < len(self.vitals.replicas):
                self.undecodable += 1
                return
            case StepStats():
                self._stepped(report)
            case Progress():
                self.last_progress = report
                self.vitals.progress(report)
                if report.stage == FAILED:
                    self.failures[report.replica] = report.detail
            case Ready():
                self.readies[report.replica] = report
                self.vitals.ready(report.replica, self._clock())
                if self.ready is None and len(self.readies) == len(self.vitals.replicas):
                    self.ready = self.readies[0]
            case Told(story=story):
                self._ended.append(story)
            case _:
                pass
        if self._metrics is not None:
            self._metrics.take(report)

    def _stepped(self, stats: StepStats) -> None:
        replica = stats.replica
        if self.vitals.replicas[replica].state == "dead":
            return  # said before it died
        self._steps[replica] = stats
        self._heard_s[replica] = self._wall_clock()
        self.vitals.step(stats, self._clock())
        if len(self.vitals.replicas) > 1:
            waiting, tokens = stats.num_queued, stats.tokens_used + stats.waiting_prompt_tokens
            self._reported[replica] = ReplicaLoad(replica, stats.time_ns, stats.num_running + waiting, waiting, tokens)

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
                if self._leave is not None:
                    self._answer(who, self._leave)
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
        """The newest load of every replica; zeros before its first step and while it is out."""
        return [_load(replica, self._steps.get(replica), heard_s) for replica, heard_s in enumerate(self._heard_s)]

    def _broadcast(self, answer: Answer) -> None:
        for who in self._frontends:
            self._answer(who, answer)

    def _answer(self, who: bytes, answer: Answer) -> None:
        try:
            self._router.send_multipart((who, msgspec.msgpack.encode(answer)), zmq.NOBLOCK)
        except zmq.Again:
            _LOG.error("frontend %r does not read its answers", who)


def _load(replica: int, stats: StepStats | None, heard_s: float) -> Load:
    running, waiting = (stats.num_running, stats.num_queued) if stats else (0, 0)
    return Load(
        dp_rank=replica,
        num_reqs=running + waiting,
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_tokens=stats.tokens_used + stats.waiting_prompt_tokens if stats else 0,
        num_pending_tokens=stats.pending_prompt_tokens if stats else 0,
        ts_tic=heard_s,
        token_usage=round(stats.tokens_used / stats.tokens_total, 4) if stats and stats.tokens_total else 0.0,
    )


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
