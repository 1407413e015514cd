"""Says when a garbage collection held a process up for long."""

import gc
import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class GcPauses:
    """A callback of ``gc`` that logs collections that take longer than ``limit_s``."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._begun_s = 0.0

    def __call__(self, phase: str, facts: dict[str, int]) -> None:
        """A collection begins or ends."""
        if phase == "start":
            self._begun_s = self._clock()
            return
        took_s = self._clock() - self._begun_s
        if took_s > self._limit_s:
            logger.warning(
                "a garbage collection (generation %d) took %.3f s; /freeze_gc makes later ones shorter",
                facts["generation"],
                took_s,
            )


def watch(limit_s: float) -> None:
    """From now on, in this process; 0 is never."""
    if limit_s:
        gc.callbacks.append(GcPauses(limit_s))
