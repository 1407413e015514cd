"""The free list of KV pages."""

from collections.abc import Iterable

from model.interface import PageId


class PageAllocator:
    """Hands out the pages 1 to ``num_pages``; page 0 is the target of padding and never free."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = [PageId(page) for page in range(num_pages, 0, -1)]

    def __len__(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[PageId]:
        """Take ``count`` pages; there must be that many."""
        assert count <= len(self._free), "more pages were promised than there are"
        return [self._free.pop() for _ in range(count)]

    def give(self, pages: Iterable[PageId]) -> None:
        """Return pages. The caller no longer owns them."""
        self._free.extend(pages)

    def pages(self) -> tuple[PageId, ...]:
        """The free pages, for checks."""
        return tuple(self._free)
