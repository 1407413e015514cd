"""The real engine process with a trap in it: a request with a certain routing key is the last that it serves."""

import sys
import threading

from scheduler.commands import Generate
from scheduler.main import main
from scheduler.observe import Committed, Event
from scheduler.tick import Tick

STEPS = 3
"""Of the fatal request that are read before the trap closes."""


class Trap:
    """An observer that hangs the engine's thread for ``stuck``, and fails for ``crash``."""

    def __init__(self) -> None:
        self._kind: str | None = None
        self._left = STEPS

    def observe(self, event: Event) -> None:
        if isinstance(event, Tick):
            keys = [command.routing_key for _, command in event.commands if isinstance(command, Generate)]
            self._kind = self._kind or next((key for key in keys if key in ("stuck", "crash")), None)
        elif isinstance(event, Committed) and self._kind is not None:
            self._left -= 1
            if not self._left:
                self._close()

    def _close(self) -> None:
        if self._kind == "crash":
            raise RuntimeError("injected failure")
        threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main((Trap(),)))
