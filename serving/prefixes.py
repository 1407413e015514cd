"""Which prefixes were sent to which replica: hashes of pages, bounded, and as true as placing requests needs.

A page's hash covers all that is before it, so equal hashes are equal prefixes. What a replica has evicted by itself is
not known here; the memory is as large as the replica's pool and forgets the same way, least recently used first.
"""

from array import array
from collections import OrderedDict
from typing import Final

from scheduler.commands import Generate

MAX_PAGES: Final = 65_536
"""Remembered of one replica: about 8 MiB."""
MAX_PROMPT_PAGES: Final = 1024
"""Looked at of one prompt; a longer one is placed by its beginning."""


def page_hashes(request: Generate, page_size: int) -> list[int]:
    """One a full page of the prompt, as far as ``MAX_PROMPT_PAGES``; its own last token is always computed anew."""
    pages = min((len(request.prompt) - 1) // page_size, MAX_PROMPT_PAGES)
    data, width = array("i", request.prompt[: pages * page_size]).tobytes(), page_size * array("i").itemsize
    before = hash((request.adapter, request.extra_key, request.cache_salt))
    hashes: list[int] = []
    for start in range(0, pages * width, width):
        before = hash((before, data[start : start + width]))
        hashes.append(before)
    return hashes


class Prefixes:
    """What went to one replica, at most ``capacity`` pages of it."""

    def __init__(self, capacity: int) -> None:
        self._capacity = max(1, min(capacity, MAX_PAGES))
        self._pages: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def longest(self, hashes: list[int]) -> int:
        """How many of the first pages went there before."""
        pages = self._pages
        return next((count for count, page in enumerate(hashes) if page not in pages), len(hashes))

    def sent(self, hashes: list[int]) -> None:
        """A prompt goes there. Ends of prefixes are forgotten before their beginnings."""
        pages = self._pages
        for page in reversed(hashes):
            pages[page] = None
            pages.move_to_end(page)
        while len(pages) > self._capacity:
            pages.popitem(last=False)

    def forget(self) -> None:
        """Its cache is empty."""
        self._pages.clear()
