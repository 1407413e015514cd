"""Notices from a thread of its own that the engine makes no progress, and that memory runs out.

Progress is one integer that the engine's thread counts up; while it rests there is none to make, be it for want of
requests or in a pause.
"""

import faulthandler
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import psutil

from scheduler.commands import StepStats
from scheduler.observe import Committed, Event
from scheduler.tick import Tick

RESTING: Final = -1
MEMORY_PERIOD_S: Final = 10.0
MEMORY_PERCENT: Final = 90.0
MAX_STACK_BYTES: Final = 65_536
_LEAST_PERIOD_S: Final = 0.01

logger = logging.getLogger(__name__)


class Heartbeat:
    """An ``Observer`` that counts what the engine does."""

    def __init__(self) -> None:
        self.count = RESTING
        """Read by the watchdog's thread."""
        self._beats = 0

    def observe(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Tick | Committed):
            self._beats += 1
            self.count = self._beats
        elif isinstance(event, StepStats) and not event.family:
            self.count = RESTING


class Patience(NamedTuple):
    """Seconds without progress until something is done; 0 is never."""

    soft_s: float
    hard_s: float


class Watchdog:
    """Logs the state when the engine is stuck, then ends the process (document: O-24).

    Args:
        heartbeat: the engine's progress.
        patience: how long it may stand still.
        dump: the engine's state in one line; read while the engine's thread may run.
        end: is told why the process must end, and ends it.
        clock: seconds.
        memory_percent: of the machine's memory that is in use.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        patience: Patience,
        dump: Callable[[], str],
        end: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        memory_percent: Callable[[], float] = lambda: psutil.virtual_memory().percent,
    ) -> None:
        self._heartbeat = heartbeat
        self._patience = patience
        self._dump = dump
        self._end = end
        self._clock = clock
        self._memory_percent = memory_percent
        self._seen = RESTING
        self._moved_s = self._looked_s = clock()
        self._barked = self._high = self._closed = self._asked = False
        self._call = threading.Event()
        limits = [limit / 4 for limit in patience if limit]
        self._period_s = max(min([MEMORY_PERIOD_S, *limits]), _LEAST_PERIOD_S)
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def ask(self) -> None:
        """Have the state logged soon. Safe from a signal handler."""
        self._asked = True
        self._call.set()

    def close(self) -> None:
        """End the thread; waits for what it does now."""
        self._closed = True
        self._call.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def look(self) -> None:
        """One look at everything."""
        now_s = self._clock()
        if self._asked:
            self._asked = False
            self._report(logging.INFO, "the state was asked for")
        self._look_at_progress(now_s)
        if now_s - self._looked_s >= MEMORY_PERIOD_S:
            self._looked_s = now_s
            self._look_at_memory()

    def _run(self) -> None:
        while not self._closed:
            self._call.wait(self._period_s)
            self._call.clear()
            if self._closed:
                return
            try:
                self.look()
            except Exception:
                logger.exception("the watchdog failed; it goes on")

    def _look_at_progress(self, now_s: float) -> None:
        seen = self._heartbeat.count
        if seen != self._seen or seen == RESTING:
            self._seen, self._moved_s, self._barked = seen, now_s, False
            return
        still_s = now_s - self._moved_s
        soft_s, hard_s = self._patience
        if soft_s and still_s >= soft_s and not self._barked:
            self._barked = True
            self._report(logging.ERROR, f"the engine has made no progress for {still_s:.1f} s")
        if hard_s and still_s >= hard_s:
            reason = f"Scheduler watchdog timeout: no progress for {still_s:.1f} s (observe.watchdog_hard_s={hard_s:g})"
            self._report(logging.CRITICAL, reason)
            self._moved_s = now_s
            self._end(reason)

    def _look_at_memory(self) -> None:
        percent = self._memory_percent()
        high = percent > MEMORY_PERCENT
        if high and not self._high:
            logger.warning("High memory usage detected: %.1f %%", percent)
        self._high = high

    def _report(self, level: int, why: str) -> None:
        logger.log(level, "%s; scheduler state: %s\n%s", why, self._state(), stacks())

    def _state(self) -> str:
        try:
            return self._dump()
        except RuntimeError as error:  # a collection changed while it was read
            return f"not to be had: {error}"


def stacks() -> str:
    """Where every thread stands, also those inside native code."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read(MAX_STACK_BYTES).decode(errors="replace")
