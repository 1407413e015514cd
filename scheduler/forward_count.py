"""Says now and then, while the engine rests, how many steps it has run."""

import logging
from typing import Final

from scheduler.commands import StepStats
from scheduler.observe import CacheFlushed, Committed, Event

STEPS: Final = 1000

logger = logging.getLogger(__name__)


class ForwardCount:
    """An ``Observer`` that logs the count once for so many steps; a flush begins anew (documents: O-22, O-23)."""

    def __init__(self) -> None:
        self._count = 0
        self._said = 0

    def observe(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Committed):
            self._count += 1
        elif isinstance(event, CacheFlushed):
            self._count = self._said = 0
        elif isinstance(event, StepStats) and not event.family and self._count - self._said >= STEPS:
            self._said = self._count
            logger.info("Forward count: %d", self._count)
