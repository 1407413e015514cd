"""Questions to engines that wait for their answers; a replica that dies answers, through its frontend, that it has."""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final

from msgspec import structs

from scheduler.commands import Reply
from serving.protocol.errors import unavailable
from serving.replica import Replica

TIMEOUT_S: Final = 30.0


class Questions:
    """The open questions of one frontend, by the id that the answer will bear."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Replica, asyncio.Future[Reply]]] = {}

    def begin(self, replica: Replica) -> str:
        """The id of a new question; it must be given to ``end``."""
        call = secrets.token_hex(8)
        self._open[call] = replica, asyncio.get_running_loop().create_future()
        return call

    async def answers(self, calls: Sequence[str]) -> list[Reply]:
        """The replies to these questions, in their order.

        Raises:
            RequestError: one of them did not come in time.
        """
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return list(await asyncio.gather(*(self._open[call][1] for call in calls)))
        except TimeoutError:
            raise unavailable("timeout", "The engine did not answer in time.", 5) from None

    def end(self, calls: Sequence[str]) -> None:
        """Nobody waits for these any more."""
        for call in calls:
            self._open.pop(call, None)

    def answered(self, replica: Replica, reply: Reply) -> None:
        """An engine's reply; one that nobody waits for is dropped."""
        _, future = self._open.get(reply.call, (None, None))
        if future is not None and not future.done():
            future.set_result(structs.replace(reply, replica=replica.number) if replica.number else reply)

    def lost(self, replica: Replica) -> None:
        """A replica will not answer."""
        for call, (asked, future) in self._open.items():
            if asked is replica and not future.done():
                message = f"Replica {replica.number} stopped before it answered."
                future.set_result(Reply(call=call, success=False, message=message, replica=replica.number))
