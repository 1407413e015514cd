"""What happens to each request, as one JSON object a log line (document: O-34)."""

import logging
from collections.abc import Callable

import msgspec

from scheduler.commands import Generate, StepStats
from scheduler.observe import Committed, Event
from scheduler.planner import Plan
from scheduler.tick import Tick

logger = logging.getLogger(__name__)


class Lifecycle:
    """An ``Observer`` that logs ``queued``, ``processing``, ``retracted`` and ``finished``.

    Requests that end without a step of theirs being read, as by an abort in the queue, have no ``finished``.

    Args:
        wall_clock: seconds since the epoch.
    """

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._waiting = 0
        self._read: Plan | None = None
        """Whose results are being applied."""

    def observe(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Tick):
            arrived = [command.rid for _, command in event.commands if isinstance(command, Generate)]
            for position, rid in enumerate(arrived, self._waiting + 1):
                self._say(rid, "queued", queue_position=position)
        elif isinstance(event, Plan):
            for request in (*event.retract, *event.preempt):
                self._say(request.rid, "retracted")
            batch_size = len(event.decode) + len(event.pieces)
            for request in event.admit:
                self._say(request.rid, "processing", batch_size=batch_size)
        elif isinstance(event, Committed):
            self._read = event.plan
        elif isinstance(event, StepStats):
            self._waiting = event.num_queued
            plan, self._read = self._read, None
            for request in (*plan.decode, *(piece.request for piece in plan.pieces)) if plan else ():
                if request.finish is not None and not request.unread:
                    self._say(request.rid, "finished")

    def _say(self, rid: str, event: str, **more: int) -> None:
        line = {"request_id": rid, "event": event, "timestamp": self._wall_clock(), **more}
        logger.info("%s", msgspec.json.encode(line).decode())
