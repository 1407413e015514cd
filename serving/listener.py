"""Who hears of the requests of a frontend and of what became of them: its log, its traces, its crash dump."""

from collections.abc import Collection
from typing import Final, Protocol

from scheduler.commands import Batch, Command, Delta, Finished, Generate, Message, Rejected
from serving.engine_wire import EngineGone, Link

PROBES: Final = "health-"
"""Ids of the service's own probes begin with this; no listener keeps them."""


class Listener(Protocol):
    """Hears of the requests of a frontend."""

    def sent(self, request: Generate) -> None:
        """A request goes to the engine."""
        ...

    def said(self, delta: Delta) -> None:
        """New tokens of a request."""
        ...

    def finished(self, answer: Finished) -> None:
        """A request has ended."""
        ...

    def rejected(self, answer: Rejected) -> None:
        """A request was refused."""
        ...

    def lost(self, rids: Collection[str], reason: str) -> None:
        """An engine died; no answer to these, of which there may be none, will come from there."""
        ...


class ListenedLink:
    """A ``Link`` whose requests and answers somebody hears of."""

    def __init__(self, link: Link, listener: Listener) -> None:
        self._link = link
        self._listener = listener
        self._open: set[str] = set()

    async def send(self, command: Command) -> None:
        """See ``Link``."""
        if isinstance(command, Generate):
            self._open.add(command.rid)
            self._listener.sent(command)
        await self._link.send(command)

    async def receive(self) -> Message:
        """See ``Link``."""
        try:
            message = await self._link.receive()
        except EngineGone as gone:
            lost, self._open = self._open, set()
            self._listener.lost(lost, str(gone))
            raise
        if isinstance(message, Batch):
            for answer in message.messages:
                self._hear(answer)
        return message

    def _hear(self, answer: Delta | Finished | Rejected) -> None:
        if isinstance(answer, Delta):
            self._listener.said(answer)
            return
        self._open.discard(answer.rid)
        if isinstance(answer, Finished):
            self._listener.finished(answer)
        else:
            self._listener.rejected(answer)
