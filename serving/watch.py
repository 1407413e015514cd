"""What every launcher serves while it waits: its collector, the other hosts, signals, and what the operator sees."""

import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator, Sequence
from types import FrameType
from typing import Final

import zmq
from msgspec import structs

from serving.collector import Collector
from serving.host_link import Link
from serving.startup import display
from serving.vitals import stage_of

_TICK_S: Final = 1.0


@contextlib.contextmanager
def caught_signals() -> Generator[socket.socket, None, None]:
    """A socket that yields the number of each SIGTERM, SIGINT and SIGCHLD as a byte. For the main thread only."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    before = {number: signal.signal(number, _heard) for number in numbers}
    descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        reading.close()
        writing.close()


class Watch:
    """One loop over everything that a launcher hears.

    Args:
        collector: what its processes say.
        hosts: what other hosts say.
        signals: see ``caught_signals``.
        about: lines that follow the engine's own when it is ready.
        where: an address to show then.
    """

    def __init__(
        self, collector: Collector, hosts: Link, signals: socket.socket, about: Sequence[str], where: str
    ) -> None:
        self.collector = collector
        self.hosts = hosts
        self.asked = 0
        """How often this host, or another, was told to stop."""
        self._signals = signals
        self._about = about
        self._where = where
        self._display = display()
        self._announced = False
        self._shown_progress = collector.last_progress
        self._poller = zmq.Poller()
        for source in (*collector.sockets, *hosts.sockets, signals.fileno()):
            self._poller.register(source, zmq.POLLIN)

    def until(self, done: Callable[[], bool], limit_s: float | None = None) -> None:
        """Serve the sockets until ``done()`` or the time limit; at least one turn."""
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while True:
            self._take_signals()
            self.collector.turn()
            self.hosts.turn()
            self._show()
            left_s = _TICK_S if deadline is None else min(_TICK_S, deadline - time.monotonic())
            if done() or left_s <= 0:
                return
            waits = [left_s, *(s for s in (self.collector.patience_s, self.hosts.patience_s) if s is not None)]
            self._poller.poll(max(1, round(1000 * min(waits))))

    def say(self, text: str) -> None:
        """Tell the operator something."""
        self._display.close()
        print(f"radjax: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Give the terminal back."""
        self._display.close()

    def _take_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.asked += sum(number != signal.SIGCHLD for number in self._signals.recv(4096))
        if self.hosts.leaving:
            self.asked = max(self.asked, 1)

    def _show(self) -> None:
        progress, ready = self.collector.last_progress, self.collector.ready
        if progress is not None and progress != self._shown_progress and not self._announced:
            self._shown_progress = progress
            self._display.progress(structs.replace(progress, stage=stage_of(progress)))
        if ready is not None and not self._announced:
            self._announced = True
            self._display.ready(structs.replace(ready, banner=[*ready.banner, *self._about]), self._where)


def _heard(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor carries the number; a handler must be there for that."""
