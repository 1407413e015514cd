"""Commands from the frontends: a table from type to handler."""

import logging
from collections.abc import Callable

import numpy as np

from scheduler.channel import Origin
from scheduler.commands import (
    Abort,
    AbortAll,
    Command,
    FinishReason,
    FlushCache,
    Generate,
    GetState,
    Rejected,
    Reply,
    Shutdown,
    Stop,
)
from scheduler.gates import Limits, Load, allowed_new_tokens, refusal
from scheduler.observe import Monitor
from scheduler.port import Answer
from scheduler.request import Finish, Request, Waits
from scheduler.results import Results
from scheduler.roster import Roster

logger = logging.getLogger(__name__)

FIRST_RIDS = 5


class Control:
    """Handles every command the engine reads.

    Args:
        roster: the requests.
        results: ends them.
        monitor: counts them.
        limits: what a request may ask for.
        eos_ids: tokens that end a request unless it ignores them.
        max_inflight: unread sampled tokens that a request may have when it is planned again.
    """

    def __init__(
        self,
        roster: Roster,
        results: Results,
        monitor: Monitor,
        limits: Limits,
        eos_ids: tuple[int, ...],
        max_inflight: int,
    ) -> None:
        self.shut = False
        """Whether the engine is to leave its loop."""
        self.fresh: list[Request] = []
        """Accepted since the last plan."""
        self._roster = roster
        self._results = results
        self._monitor = monitor
        self._limits = limits
        self._eos_ids = eos_ids
        self._max_inflight = max_inflight
        self._arrived = 0
        self._handlers: dict[type[Command], Callable[[Origin, Command, int], list[Answer]]] = {
            Generate: self._generate,
            Abort: self._abort,
            AbortAll: self._abort_all,
            Stop: self._stop,
            FlushCache: self._flush,
            GetState: self._state,
            Shutdown: self._shutdown,
        }

    def handle(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        """Do what the command asks. A failure is answered to its sender and the engine lives."""
        try:  # document: O-14
            return self._handlers[type(command)](origin, command, now_ns)
        except Exception:
            logger.exception("a command of frontend %d failed: %s", origin, _name(command))
            return self._failed(origin, command)

    def _failed(self, origin: Origin, command: Command) -> list[Answer]:
        message = "The engine could not handle this; its log says why."
        if isinstance(command, Generate):
            self._monitor.counters.rejected += 1
            return [(origin, Rejected(rid=command.rid, status=500, code="internal_error", message=message))]
        if isinstance(command, FlushCache | GetState):
            return [(origin, Reply(call=command.call, success=False, message=message))]
        return []

    def _generate(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        assert isinstance(command, Generate)
        rejected = self._refuse(command, now_ns)
        if rejected is not None:
            self._monitor.counters.rejected += 1
            return [(origin, rejected)]
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
            namespace=b"" if command.extra_key is None else b"\0" + command.extra_key.encode(errors="surrogatepass"),
            max_new=allowed_new_tokens(command, self._limits),
            stop_ids=frozenset(params.stop_token_ids + (() if params.ignore_eos else self._eos_ids)),
            max_inflight=self._max_inflight,
            arrived_ns=now_ns,
            waits=Waits(now_ns),
        )
        self._roster.add(request)
        self.fresh.append(request)
        return []

    def _refuse(self, command: Generate, now_ns: int) -> Rejected | None:
        if command.rid in self._roster:
            message = "A request with this id is already being served."
            return Rejected(rid=command.rid, status=400, code="duplicate_id", message=message, param="rid")
        load = Load(len(self._roster.waiting), self._monitor.drain.per_s(now_ns))
        return refusal(command, self._limits, load)

    def _abort(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        del origin
        assert isinstance(command, Abort)
        return [self._aborted(request, now_ns) for request in self._roster.find(command.rid)]

    def _abort_all(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        del origin, command
        return [self._aborted(request, now_ns) for request in self._roster.open_requests()]

    def _aborted(self, request: Request, now_ns: int) -> Answer:
        return self._results.end(request, Finish(FinishReason.ABORT, None, len(request.output)), now_ns)

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

    def _flush(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        del now_ns
        assert isinstance(command, FlushCache)
        if not self._roster.idle:
            message = f"Not flushed: {len(self._roster.running)} requests run, {len(self._roster.waiting)} wait."
            return [(origin, Reply(call=command.call, success=False, message=message))]
        pages = self._roster.kv.flush()
        logger.info("prefix cache flushed: %d pages", pages)
        return [(origin, Reply(call=command.call, success=True, message=f"Flushed {pages} pages."))]

    def _state(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        assert isinstance(command, GetState)
        roster, kv = self._roster, self._roster.kv
        available = kv.available()[0]
        running = [request.rid for request in roster.running.values()]
        state: dict[str, str | int | float | bool | None] = {
            "timestamp_ns": now_ns,
            "num_running": len(running),
            "running_rids": " ".join(running[:FIRST_RIDS]),
            "num_waiting": len(roster.waiting),
            "waiting_rids": " ".join(r.rid for r in list(roster.waiting.values())[:FIRST_RIDS]),
            "available_tokens": available * kv.page_size,
            "cached_tokens": kv.cached * kv.page_size,
            "total_tokens": kv.num_pages * kv.page_size,
            "token_usage": 1 - available / kv.num_pages,
            "free_slots": kv.free_slots,
        }
        return [(origin, Reply(call=command.call, success=True, message="", state=state))]

    def _shutdown(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        self.shut = True
        return self._abort_all(origin, command, now_ns)


def _name(command: Command) -> str:
    name = type(command).__name__
    return f"{name} {command.rid}" if isinstance(command, Generate | Abort | Stop) else name
