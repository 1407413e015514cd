"""One engine as a frontend knows it, from its start to its death; one that is started again is another."""

import contextlib
import time
from typing import NamedTuple

from msgspec import structs

from scheduler.commands import Command, Generate, Ready
from serving.collector_wire import ReplicaLoad
from serving.engine_wire import EngineGone, Link
from serving.placement import Standing
from serving.prefixes import MAX_PAGES, Prefixes


class _Sent(NamedTuple):
    time_ns: int
    tokens: int


class Replica:
    """Its link, what it said of itself, what was sent to it.

    Args:
        number: its place among the engines.
        link: the way to it.
        life: how often it was started before.
    """

    def __init__(self, number: int, link: Link, life: int = 0) -> None:
        self.number = number
        self.link = link
        self.life = life
        self.ready: Ready | None = None
        """None until it serves."""
        self.gone: str | None = None
        """Why it answers no more."""
        self.stuck = False
        """Whether it is thought to stand still."""
        self._began_ns = time.monotonic_ns()
        self._open: dict[str, _Sent] = {}
        """This frontend's requests there."""
        self._own_tokens = 0
        self._others = ReplicaLoad(number)
        """Its newest report, less what this frontend had sent by then: the requests of others."""
        self._prefixes = Prefixes(MAX_PAGES)

    @property
    def serving(self) -> bool:
        """Whether it can be asked anything."""
        return self.ready is not None and self.gone is None

    def serve(self, ready: Ready) -> None:
        """It has become ready."""
        self.ready = ready
        self._prefixes = Prefixes(ready.num_pages or MAX_PAGES)

    def standing(self, hashes: list[int]) -> Standing:
        """How it stands for a prompt with these pages."""
        others = self._others
        return Standing(
            serving=self.serving and not self.stuck,
            requests=others.requests + len(self._open),
            tokens=others.tokens + self._own_tokens,
            matched=self._prefixes.longest(hashes),
            waiting=others.waiting,
        )

    def sent(self, request: Generate, hashes: list[int], now_ns: int) -> None:
        """A request goes there."""
        self._open[request.rid] = _Sent(now_ns, len(request.prompt))
        self._own_tokens += len(request.prompt)
        self._prefixes.sent(hashes)

    def left(self, rid: str) -> None:
        """A request has ended, or goes elsewhere."""
        sent = self._open.pop(rid, None)
        if sent is not None:
            self._own_tokens -= sent.tokens

    def heard(self, load: ReplicaLoad) -> None:
        """Its newest report, which counts what it had received by then."""
        if load.time_ns < self._began_ns:
            return  # of the life before
        counted = [sent.tokens for sent in self._open.values() if sent.time_ns <= load.time_ns]
        self._others = structs.replace(
            load, requests=max(0, load.requests - len(counted)), tokens=max(0, load.tokens - sum(counted))
        )

    async def tell(self, command: Command) -> None:
        """Send it a command; one that is gone need not hear it."""
        if self.gone is None:
            with contextlib.suppress(EngineGone):
                await self.link.send(command)

    def flushed(self) -> None:
        """Its cache was emptied."""
        self._prefixes.forget()
