"""Work that nobody waits for: kept from being collected, ended together, and heard of when it fails."""

import asyncio
import logging
from collections.abc import Coroutine

_LOG = logging.getLogger(__name__)


class Tasks:
    """The tasks of one owner."""

    def __init__(self) -> None:
        self._open: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Do it in the background."""
        task = asyncio.create_task(work)
        self._open.add(task)
        task.add_done_callback(self._done)

    async def end(self) -> None:
        """Cancel all that has not ended, and wait for that."""
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("work in the background failed", exc_info=error)
