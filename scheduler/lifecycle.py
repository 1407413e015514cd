"""What happens to each request, as one JSON object a log line (document: O-34)."""

import logging
from collections.abc import Callable

import msgspec

from scheduler.observe import Ended, Event, Queued
from scheduler.planner import Plan

logger = logging.getLogger(__name__)


class Lifecycle:
    """An ``Observer`` that logs ``queued``, ``processing``, ``retracted`` and ``finished`` of every accepted request.

    Args:
        wall_clock: seconds since the epoch.
    """

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock

    def observe(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Queued):
            self._say(event.rid, "queued", queue_position=event.position)
        elif isinstance(event, Plan):
            for request in (*event.retract, *event.preempt):
                self._say(request.rid, "retracted")
            batch_size = len(event.decode) + len(event.pieces)
            for request in event.admit:
                self._say(request.rid, "processing", batch_size=batch_size)
        elif isinstance(event, Ended):
            self._say(event.rid, "finished", reason=event.reason.value)

    def _say(self, rid: str, event: str, **more: int | str) -> None:
        line = {"request_id": rid, "event": event, "timestamp": self._wall_clock(), **more}
        logger.info("%s", msgspec.json.encode(line).decode())
