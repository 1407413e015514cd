"""Who moves pages between the device, host memory and the storage; the core only says which, and hears when.

Whatever is given a ticket is answered by one completion with it.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from model.interface import PageId


class Chain(NamedTuple):
    """Pages ``[first, …)`` of a prefix."""

    namespace: bytes
    key: bytes
    """Token ids of whole pages from position 0, int32 bytes."""
    first: int


class Copies(Protocol):
    """Moves pages. Nothing here blocks on the device or on a disk; ``load`` may take the time of a copy in memory."""

    def save(self, ticket: int, pages: Sequence[PageId], host_pages: Sequence[PageId]) -> None:
        """Copy pages of the device, as all steps launched so far leave them, to host memory: then ``Saved``."""

    def load(self, host_pages: Sequence[PageId], pages: Sequence[PageId]) -> None:
        """Copy pages of host memory to the device, before any step that is launched later."""

    def store(self, ticket: int, chain: Chain, host_pages: Sequence[PageId]) -> None:
        """Write pages of host memory, which hold ``chain``, to the storage: then ``Stored``."""

    def look_up(self, ticket: int, chain: Chain) -> None:
        """Ask the storage how many pages of ``chain`` it has: then ``Found``."""

    def fetch(self, ticket: int, chain: Chain, host_pages: Sequence[PageId]) -> None:
        """Read the first pages of ``chain`` from the storage into host memory: then ``Fetched``."""

    def attach(self, ticket: int, directory: str) -> None:
        """Open a storage, in place of the one there is: then ``StorageAnswer``."""

    def detach(self) -> None:
        """Let go of the storage, once all that it was asked for is done; what it holds stays."""

    def clear(self, ticket: int) -> None:
        """Delete what the storage holds: then ``StorageAnswer``."""

    def close(self) -> None:
        """Finish what is under way, as far as that takes a few seconds. Nothing is asked for afterwards."""


class NoCopies(Copies):
    """Moves nothing and says nothing, as the protocol's own methods: for a replay, whose completions are recorded."""
