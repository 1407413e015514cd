"""Commands from the frontends: a table from type to handler."""

import logging
from typing import Literal

import numpy as np

from scheduler.channel import Origin
from scheduler.commands import (
    Abort,
    AbortAll,
    AbortCause,
    AttachStorage,
    ClearStorage,
    Command,
    DetachStorage,
    ExpertDistribution,
    FinishReason,
    Generate,
    Recall,
    Rejected,
    Reply,
    Shutdown,
    StartProfile,
    Stop,
    StopProfile,
)
from scheduler.deadlines import overdue_running, overdue_waiting
from scheduler.gates import Limits, Load, allowed_new_tokens, excess, refusal
from scheduler.observe import Monitor
from scheduler.operations import Handler, Operations
from scheduler.port import Answer
from scheduler.prefix_cache import namespace
from scheduler.priority import displaced, urgency
from scheduler.request import Finish, Request, Waits
from scheduler.results import Results
from scheduler.roster import Roster

logger = logging.getLogger(__name__)


class Control:
    """Handles every command the engine reads.

    Args:
        roster: the requests.
        results: ends them.
        monitor: counts them.
        eos_ids: tokens that end a request unless it ignores them.
        max_inflight: unread sampled tokens that a request may have when it is planned again.
        operations: handles what concerns no single request.
    """

    def __init__(
        self,
        roster: Roster,
        results: Results,
        monitor: Monitor,
        eos_ids: tuple[int, ...],
        max_inflight: int,
        operations: Operations,
    ) -> None:
        self.shut = False
        """Whether the engine is to leave its loop."""
        self.fresh: list[Request] = []
        """Accepted since the last plan."""
        self.pause = operations.pause
        self.tuning = operations.tuning
        self._roster = roster
        self._results = results
        self._monitor = monitor
        self._eos_ids = eos_ids
        self._max_inflight = max_inflight
        self._arrived = 0
        self.handlers: dict[type[Command], Handler] = {
            Generate: self._generate,
            Abort: self._abort,
            AbortAll: self._abort_all,
            Recall: self._recall,
            Stop: self._stop,
            AttachStorage: self._storage,
            DetachStorage: self._storage,
            ClearStorage: self._storage,
            Shutdown: self._shutdown,
            StartProfile: self._no_profiler,
            StopProfile: self._no_profiler,
            ExpertDistribution: self._no_experts,
            **operations.handlers,
        }
        """Who carries out each command; before the loop begins, those who can do more take theirs."""

    @property
    def _limits(self) -> Limits:
        return self.tuning.values.limits

    def handle(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        """Do what the command asks. A failure is answered to its sender and the engine lives."""
        try:  # document: O-14
            return self.handlers[type(command)](origin, command, now_ns)
        except Exception:
            logger.exception("a command of frontend %d failed: %s", origin, _name(command))
            return self._failed(origin, command)

    def _failed(self, origin: Origin, command: Command) -> list[Answer]:
        message = "The engine could not handle this; its log says why."
        if isinstance(command, Generate):
            self._monitor.counters.rejected += 1
            return [(origin, Rejected(rid=command.rid, status=500, code="internal_error", message=message))]
        if isinstance(command, Abort | AbortAll | Recall | Stop | Shutdown):
            return []
        return [(origin, Reply(call=command.call, success=False, message=message))]

    def _generate(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        assert isinstance(command, Generate)
        rejected = self._refuse(command, now_ns)
        answers: list[Answer] = []
        if rejected is not None and rejected.code == "queue_full":
            answers = self._displace(command, now_ns)
        if rejected is not None and not answers:
            self._monitor.counters.rejected += 1
            return [(origin, rejected)]
        self._accept(origin, command, now_ns)
        return answers

    def _accept(self, origin: Origin, command: Generate, now_ns: int) -> None:
        params = command.params
        self._arrived += 1
        request = Request(
            rid=command.rid,
            group=command.group,
            origin=origin,
            number=self._arrived,
            prompt=np.array(command.prompt, np.int32),
            params=params,
            stream=command.stream,
            namespace=namespace(command.adapter, command.extra_key, command.cache_salt),
            routing_key=command.routing_key,
            max_new=allowed_new_tokens(command, self._limits),
            stop_ids=frozenset(params.stop_token_ids + (() if params.ignore_eos else self._eos_ids)),
            max_inflight=self._max_inflight,
            arrived_ns=now_ns,
            waits=Waits(now_ns),
            urgency=urgency(command.priority, self._limits.priority),
        )
        self._roster.add(request)
        self.fresh.append(request)
        self._monitor.queued(request)

    def _refuse(self, command: Generate, now_ns: int) -> Rejected | None:
        if command.rid in self._roster:
            message = "A request with this id is already being served."
            return Rejected(rid=command.rid, status=400, code="duplicate_id", message=message, param="rid")
        return refusal(command, self._limits, self._load(now_ns))

    def _load(self, now_ns: int) -> Load:
        roster = self._roster
        return Load(len(roster.waiting), self._monitor.drain.per_s(now_ns), roster.waiting_tokens)

    def _displace(self, command: Generate, now_ns: int) -> list[Answer]:
        """Drop less urgent requests from the full queue, if that makes room for a new one."""
        load, newcomer = self._load(now_ns), urgency(command.priority, self._limits.priority)
        victims = displaced(self._roster.levels.never_run(), newcomer, *excess(command, self._limits, load))
        self._monitor.counters.displaced += len(victims)
        message = "The request is aborted by a higher priority request."
        return [self._drop(victim, "displaced", message, load, now_ns) for victim in victims]

    def expire(self, now_ns: int) -> list[Answer]:
        """Answer what has waited or run for too long (documents: O-24; SGLang's two time-outs and their words)."""
        roster, limits, counters = self._roster, self.tuning.values.times, self._monitor.counters
        waited = overdue_waiting(roster.waiting.values(), limits, now_ns)
        ran = overdue_running(roster.started.values(), limits, now_ns)
        if not waited and not ran:
            return []
        load = self._load(now_ns)
        counters.waiting_timeouts += len(waited)
        counters.running_timeouts += len(ran)
        message = "Request waiting timeout reached."
        answers = [self._drop(request, "waiting_timeout", message, load, now_ns) for request in waited]
        for request in ran:
            logger.warning("request %s ran for longer than scheduler.running_timeout_s and is aborted", request.rid)
            finish = Finish(FinishReason.ABORT, None, len(request.output), AbortCause.RUNNING_TIMEOUT)
            answers.append(self._results.end(request, finish, now_ns, load.retry_after_s))
        return answers

    def _drop(
        self, request: Request, code: Literal["displaced", "waiting_timeout"], message: str, load: Load, now_ns: int
    ) -> Answer:
        retry_after_s = load.retry_after_s
        rejected = Rejected(rid=request.rid, status=503, code=code, message=message, retry_after_s=retry_after_s)
        return self._results.drop(request, rejected, now_ns)

    def _abort(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        del origin
        assert isinstance(command, Abort)
        return [self._aborted(request, now_ns) for request in self._roster.find(command.rid)]

    def _abort_all(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        del origin, command
        return [self._aborted(request, now_ns) for request in self._roster.open_requests()]

    def _aborted(self, request: Request, now_ns: int) -> Answer:
        return self._results.end(request, Finish(FinishReason.ABORT, None, len(request.output)), now_ns)

    def _recall(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        del origin
        assert isinstance(command, Recall)
        message = "The request goes to another engine."
        rejected = Rejected(rid=command.rid, status=503, code="recalled", message=message)
        roster = self._roster
        found = [request for request in roster.find(command.rid) if request.rid == command.rid]
        return [self._results.drop(one, rejected, now_ns) for one in found if one.number not in roster.started]

    def _stop(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        del origin
        assert isinstance(command, Stop)
        return [
            self._results.end(
                request,
                Finish(FinishReason.STOP, command.matched, min(command.num_tokens, len(request.output))),
                now_ns,
            )
            for request in self._roster.find(command.rid)
            if request.rid == command.rid
        ]

    def _storage(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        del now_ns
        assert isinstance(command, AttachStorage | DetachStorage | ClearStorage)
        tiers = self._roster.tiers
        if tiers is None:
            message = "There is no host tier: it is switched on with cache.host."
            return [(origin, Reply(call=command.call, success=False, message=message))]
        return [*tiers.command(origin, command)]

    def _no_profiler(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        del now_ns
        assert isinstance(command, StartProfile | StopProfile)
        return [(origin, Reply(call=command.call, success=False, message="There is no profiler here."))]

    def _no_experts(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        del now_ns
        assert isinstance(command, ExpertDistribution)
        message = "The model has no experts, or is cut into stages or over hosts."
        return [(origin, Reply(call=command.call, success=False, message=message))]

    def _shutdown(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        self.shut = True
        return [*self._abort_all(origin, command, now_ns), *self.pause.give_up()]


def _name(command: Command) -> str:
    name = type(command).__name__
    return f"{name} {command.rid}" if isinstance(command, Generate | Abort | Stop) else name
