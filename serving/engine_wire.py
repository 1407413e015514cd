"""One engine's wire as a frontend's client sees it; ``serving.link`` is that over ZeroMQ."""

from typing import Protocol

from scheduler.commands import Command, Message


class EngineGone(Exception):
    """The engine at the other end of a link is dead; its words are the reason."""


class Link(Protocol):
    """One engine's wire."""

    async def send(self, command: Command) -> None:
        """Hand over one command, in order; raises ``EngineGone`` when nobody will take it."""
        ...

    async def receive(self) -> Message:
        """The next message; raises ``EngineGone`` when none will ever come."""
        ...
