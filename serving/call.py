"""The answers to one HTTP call, merged until somebody takes them: a slow reader costs at most its requests' tokens."""

import asyncio

from scheduler.commands import Delta, Finished
from serving.answer import Piece


class ClientGone(Exception):
    """Nobody reads this call any more."""


class Call:
    """The answers to the requests of one HTTP call, by index."""

    def __init__(self, size: int) -> None:
        self.remaining = size
        self._pieces: dict[int, Piece] = {}
        self._failure: Exception | None = None
        self._news = asyncio.Event()

    async def take(self, timeout_s: float | None) -> dict[int, Piece]:
        """Everything that came since the last time; waits for something. Empty when ``timeout_s`` passed.

        Raises a ``RequestError`` that ends the whole call, or ``ClientGone``.
        """
        if not self._news.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._news.wait()
            except TimeoutError:
                return {}
        self._news.clear()
        if self._failure is not None:
            raise self._failure
        pieces, self._pieces = self._pieces, {}
        return pieces

    def push(self, index: int, delta: Delta, finished: Finished | None) -> None:
        """Merge what came for one request."""
        piece = self._pieces.get(index)
        if piece is None:
            piece = self._pieces[index] = Piece()
        piece.tokens += delta.tokens
        piece.cached_tokens = max(piece.cached_tokens, delta.cached_tokens)
        if delta.logprobs is not None:
            piece.logprobs += delta.logprobs
        if delta.prompt_logprobs is not None:
            piece.prompt_logprobs += delta.prompt_logprobs
        if finished is not None:
            piece.finished = finished
            self.remaining -= 1
        self._news.set()

    def fail(self, failure: Exception) -> None:
        """End the call; the first failure counts."""
        self._failure = self._failure or failure
        self._news.set()
