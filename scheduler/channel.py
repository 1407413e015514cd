"""How commands reach the engine and answers leave it. Transports implement this; the core sees only it."""

from typing import Protocol

from scheduler.commands import Command, Message

Origin = int
"""Which frontend a command came from, and an answer goes to."""


class Channel(Protocol):
    """The engine's end of the wire."""

    def receive(self, timeout_s: float | None) -> list[tuple[Origin, Command]]:
        """All commands that wait, in arrival order; blocks up to ``timeout_s`` (None: for ever) for the first."""
        ...

    def send(self, origin: Origin, message: Message) -> None:
        """Queue one message for a frontend. Never blocks."""
        ...

    def broadcast(self, message: Message) -> None:
        """Queue one message for every frontend. Never blocks."""
        ...

    def wake(self) -> None:
        """Make ``receive`` return, perhaps with nothing. Safe from any thread."""
        ...
