"""What a launcher knows of the other hosts: whether all are there, live, and plan the same.

Each says now and then that it lives, and at once why it dies. The engine processes are not asked: one that waits in a
collective for a host that is gone waits for ever, and cannot say so.
"""

import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
import zmq

from configs.distributed import common, difference
from configs.schema import EngineConfig
from scheduler.commands import PlanMade
from scheduler.start import Endpoints
from serving.host_wire import (
    Alive,
    Differs,
    Dying,
    Ended,
    Hello,
    HostWire,
    Leaving,
    Planned,
    Refused,
    Welcome,
    Word,
    versions,
)
from serving.plan_check import Comparison, PlanLog, readable

BEATS: Final = 6
"""In ``distributed.timeout_s``."""
LONGEST_BEAT_S: Final = 1.0
SETTLED_S: Final = 1.0
"""A host that is heard this long after a death here has not died of the same cause."""
SHOW_S: Final = 2.0
"""For another host to show its plan when it differs."""
MAX_PLANS_PER_TURN: Final = 10_000

logger = logging.getLogger(__name__)


class Link(Protocol):
    """What the launcher asks of the other hosts."""

    @property
    def met(self) -> bool:
        """Whether all hosts are there."""
        ...

    @property
    def fault(self) -> str | None:
        """Why the service must end, as far as the other hosts are concerned."""
        ...

    @property
    def leaving(self) -> bool:
        """Whether a host was told to stop."""
        ...

    @property
    def over(self) -> bool:
        """Whether host 0 has ended the service as it should."""
        ...

    @property
    def sockets(self) -> "tuple[zmq.SyncSocket, ...]":
        """What the launcher polls for reading."""
        ...

    @property
    def patience_s(self) -> float | None:
        """How long until something has to be said although nothing is heard; None: not at all."""
        ...

    def turn(self) -> None:
        """Take everything that waits, and say what is due."""
        ...

    def settled(self, since_s: float) -> bool:
        """Whether it is known what the others have to do with a death here at ``since_s``, by the monotonic clock."""
        ...

    def leave(self) -> None:
        """This host was told to stop."""
        ...

    def end(self) -> None:
        """Tell the others that the service has ended as it should."""
        ...

    def die(self, reason: str) -> None:
        """Tell the others why the service ends."""
        ...

    def close(self) -> None:
        """Close the sockets."""
        ...


class NoLink:
    """There are no other hosts."""

    met = True
    fault = None
    leaving = False
    over = False
    sockets = ()
    patience_s = None

    def turn(self) -> None:
        """See ``Link``."""

    def settled(self, since_s: float) -> bool:
        """See ``Link``."""
        return True

    def leave(self) -> None:
        """See ``Link``."""

    def end(self) -> None:
        """See ``Link``."""

    def die(self, reason: str) -> None:
        """See ``Link``."""

    def close(self) -> None:
        """See ``Link``."""


class HostLink:
    """``Link`` to the other hosts.

    Args:
        context: of this process.
        endpoints: where this host's engine posts its plans.
        config: the launch file.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.SyncSocket]",
        endpoints: Endpoints,
        config: EngineConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.met = False
        self.fault: str | None = None
        self.leaving = False
        self.over = False
        self._config = config
        self._distributed = config.distributed
        self._clock = clock
        self._wire = HostWire(context, config.distributed)
        self._plans = context.socket(zmq.PULL)
        self._plans.bind(endpoints.plans)
        self._made: msgspec.msgpack.Decoder[PlanMade] = msgspec.msgpack.Decoder(PlanMade)
        self._log = PlanLog()
        self._comparison = Comparison(self._log)
        self._heard_s: dict[int, float] = {}
        self._began_s = clock()
        self._beat_s = min(self._distributed.timeout_s / BEATS, LONGEST_BEAT_S)
        self._beaten_s = self._began_s
        self._asked_s: float | None = None
        """When another host was asked for its plan."""
        if self._distributed.rank:
            self._wire.send(0, Hello(versions(), msgspec.msgpack.encode(common(config))))

    @property
    def sockets(self) -> "tuple[zmq.SyncSocket, ...]":
        """See ``Link``."""
        return self._wire.socket, self._plans

    @property
    def patience_s(self) -> float | None:
        """See ``Link``."""
        return max(0.0, self._beaten_s + self._beat_s - self._clock())

    def turn(self) -> None:
        """See ``Link``."""
        self._read_plans()
        for rank, word in self._wire.receive():
            self._take(rank, word)
        now_s = self._clock()
        if now_s >= self._beaten_s + self._beat_s:
            self._beaten_s = now_s
            for rank in self._heard_s:
                self._wire.send(rank, Alive())
            self._tell_plans()
        self._look(now_s)

    def settled(self, since_s: float) -> bool:
        """See ``Link``."""
        if self.fault is not None or not self.met:
            return True
        return all(heard_s > since_s + SETTLED_S for heard_s in self._heard_s.values())

    def leave(self) -> None:
        """See ``Link``."""
        self._tell(Leaving())

    def end(self) -> None:
        """See ``Link``."""
        self._tell(Ended())

    def die(self, reason: str) -> None:
        """See ``Link``."""
        self._tell(Dying(reason))

    def close(self) -> None:
        """See ``Link``."""
        self._wire.close()
        self._plans.close()

    def _tell(self, word: Word) -> None:
        for rank in self._heard_s:
            self._wire.send(rank, word)

    def _take(self, rank: int, word: Word) -> None:
        if isinstance(word, Hello):
            self._greet(rank, word)
            return
        self._heard_s[rank] = self._clock()
        match word:
            case Welcome():
                self.met = True
            case Refused(reason=reason):
                self._end(f"host 0 does not take this one: {reason}")
            case Planned(digests=digests):
                self._comparison.heard(rank, digests)
            case Differs():
                self._show(rank, word)
            case Leaving():
                self.leaving = True
            case Ended():
                self.over = True
            case Dying(reason=reason):
                self._end(f"host {rank}: {reason}")
            case _:
                pass

    def _greet(self, rank: int, hello: Hello) -> None:
        """On host 0: another host is there. What one that begins anew has forgotten, the others go on from."""
        if self.met:
            self._end(f"host {rank} has begun anew")
            return
        wrong = self._unlike(hello)
        if wrong is not None:
            logger.warning("host %d is refused: %s", rank, wrong)
            self._wire.send(rank, Refused(wrong))
            return
        self._heard_s[rank] = self._clock()
        logger.info("host %d is there", rank)
        if len(self._heard_s) == len(self._wire.others):
            self._tell(Welcome())
            self.met = True

    def _unlike(self, hello: Hello) -> str | None:
        if hello.versions != versions():
            return f"here is {versions()}, there is {hello.versions}"
        try:
            theirs = msgspec.msgpack.decode(hello.config, type=EngineConfig)
        except msgspec.DecodeError as error:
            return f"its launch file cannot be read: {error}"
        return difference(common(self._config), theirs)

    def _read_plans(self) -> None:
        for _ in range(MAX_PLANS_PER_TURN):
            try:
                self._log.note(self._made.decode(self._plans.recv(zmq.NOBLOCK)))
            except zmq.Again:
                break
        if len(self._log.unsent) >= self._distributed.check_plans:
            self._tell_plans()

    def _tell_plans(self) -> None:
        digests = self._log.take_unsent()
        if digests and self._distributed.rank:
            self._wire.send(0, Planned(digests))

    def _show(self, rank: int, theirs: Differs) -> None:
        """The hosts planned differently: both plans go to the log of both."""
        mine = self._log.find(theirs.number)
        here = self._distributed.rank
        if here:
            self._wire.send(0, Differs(theirs.number, mine))
        what = f"plan {theirs.number} differs between host {here} and host {rank}"
        logger.critical("%s; host %d: %s; host %d: %s", what, here, readable(mine), rank, readable(theirs.plan))
        self._end(f"{what}; the log has both")

    def _look(self, now_s: float) -> None:
        """Whether there is something to end for."""
        limit_s = self._distributed.timeout_s
        for rank, heard_s in self._heard_s.items():
            if now_s - heard_s > limit_s:
                silent = f"nothing was heard of it for {now_s - heard_s:.1f} s"
                self._end(f"host {rank} is lost: {silent} (distributed.timeout_s is {limit_s:g})")
        if not self.met and now_s - self._began_s > self._distributed.join_timeout_s:
            self._end(self._alone())
        if self._asked_s is not None:
            if now_s - self._asked_s > SHOW_S:
                self._end("the plans of the hosts differ, and the other is not shown")
        elif found := self._comparison.difference():
            rank, number = found
            self._asked_s = now_s
            mine = self._log.find(number)
            logger.critical("plan %d differs on host %d; here: %s", number, rank, readable(mine))
            self._wire.send(rank, Differs(number, mine))

    def _alone(self) -> str:
        """Who has not come."""
        if self._distributed.rank:
            where, rank = self._distributed.coordinator, self._distributed.rank
            return f"host 0 did not answer at {where}; does it run, and is no other host number {rank}?"
        missing = [str(rank) for rank in self._wire.others if rank not in self._heard_s]
        return f"of {self._distributed.hosts} hosts these did not come in time: {', '.join(missing)}"

    def _end(self, fault: str) -> None:
        self.fault = self.fault or fault


def open_link(context: "zmq.Context[zmq.SyncSocket]", endpoints: Endpoints, config: EngineConfig) -> Link:
    """The link that a launch file asks for."""
    return NoLink() if config.distributed.hosts == 1 else HostLink(context, endpoints, config)
