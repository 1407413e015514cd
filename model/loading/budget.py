"""How much host memory loading takes: a bound for what is under way, and what the process has taken so far."""

import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """Bytes that several threads share; who asks for more than all of them gets them alone."""

    __slots__ = ("_changed", "_held", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Wait until so many are free, and give them back in the end."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + num_bytes <= self._limit)
            self._held += num_bytes
        try:
            yield
        finally:
            with self._changed:
                self._held -= num_bytes
                self._changed.notify_all()


def peak_resident_bytes() -> int:
    """The most memory that this process has had at once, shared pages counted."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
