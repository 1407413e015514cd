"""What finished off the engine's thread, and how it comes back: through the next Tick, and in no other way."""

from collections import deque
from collections.abc import Callable

from msgspec import Struct

MAX_POSTED = 65_536
"""Completions that wait for a turn; what is under way is bounded far below that."""


class Saved(Struct, frozen=True, tag="saved"):
    """Pages have been copied from the device to host memory."""

    ticket: int


class Stored(Struct, frozen=True, tag="stored"):
    """Pages of host memory have been written to the storage, or could not be."""

    ticket: int


class Found(Struct, frozen=True, tag="found"):
    """The storage has been asked for a prefix."""

    ticket: int
    pages: int
    """Leading pages that it has."""


class Fetched(Struct, frozen=True, tag="fetched"):
    """Pages have been read from the storage into host memory."""

    ticket: int
    pages: int
    """Leading pages that were read whole."""


class StorageAnswer(Struct, frozen=True, tag="storage"):
    """A storage was attached or cleared, or could not be."""

    ticket: int
    success: bool
    message: str


Completion = Saved | Stored | Found | Fetched | StorageAnswer


class Mailbox:
    """Completions on their way to the engine; ``post`` may be called from any thread."""

    def __init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None
        """Ends the wait of an idle engine; set by whoever waits."""
        self._posted: deque[Completion] = deque()

    def __bool__(self) -> bool:
        return bool(self._posted)

    def post(self, completion: Completion) -> None:
        """Hand over one completion."""
        assert len(self._posted) < MAX_POSTED, "completions are not taken"
        self._posted.append(completion)
        self.wake()

    def take(self) -> list[Completion]:
        """All that wait, in order."""
        return [self._posted.popleft() for _ in range(len(self._posted))]
