"""The pages of the window group: layers with a sliding window keep only what the next token still sees.

A window page is free, or a lease's own, or cached. A cached one is named by the full page of the same tokens, for the
prefix tree knows full pages alone: as long as the tree keeps a full page, the window page beside it may come and go (a
full page without one is what SGLang's SWARadixCache calls a tombstone). Leases that read a cached window page hold it;
those that nobody holds are evicted least recently held first.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from model.interface import PageId
from scheduler.page_allocator import PageAllocator
from scheduler.page_use import GroupUse


class WindowPages:
    """Hands out window pages, and remembers those beside cached full pages.

    Args:
        pages: the free list.
        needed: pages before a page border that hold all that a token behind the border sees of its past.
    """

    def __init__(self, pages: PageAllocator, needed: int) -> None:
        self.needed = needed
        self.evicted = 0
        """Pages evicted since the start while their full pages stayed cached."""
        self._pages = pages
        self._beside: dict[PageId, PageId] = {}
        """By full page, its window page."""
        self._held: dict[PageId, int] = {}
        """By full page, how many leases hold its window page; never 0."""
        self._loose: OrderedDict[PageId, None] = OrderedDict()
        """Full pages whose window page nobody holds, the least recently held first."""

    @property
    def num_pages(self) -> int:
        """Pages in all."""
        return self._pages.num_pages

    @property
    def available(self) -> int:
        """Pages that could be had now: free, or evictable."""
        return len(self._pages) + len(self._loose)

    def use(self) -> GroupUse:
        """Who holds the pages."""
        return GroupUse(self.num_pages, len(self._pages), len(self._loose), len(self._held))

    def cached(self) -> Iterable[PageId]:
        """The full pages beside which a window page is cached."""
        return self._beside.keys()

    def usable(self, full: Sequence[PageId]) -> int:
        """How many leading pages of a cached prefix a request can go on from: at their end the window is whole."""
        end = at = len(full)
        while at and end - at < self.needed:
            at -= 1
            if full[at] not in self._beside:
                end = at
        return end

    def loose(self, full: Iterable[PageId]) -> int:
        """How many of these have a window page that nobody holds."""
        return sum(page in self._loose for page in full)

    def sole(self, full: PageId) -> bool:
        """Whether the window page beside ``full`` is held exactly once."""
        return self._held[full] == 1

    def hold(self, full: PageId) -> PageId:
        """Keep the window page beside ``full``, which must be there, until it is released as often."""
        count = self._held.get(full, 0)
        if not count:
            del self._loose[full]
        self._held[full] = count + 1
        return self._beside[full]

    def release(self, full: PageId) -> None:
        """Undo one ``hold``."""
        count = self._held[full] - 1
        if count:
            self._held[full] = count
        else:
            del self._held[full]
            self._loose[full] = None

    def adopt(self, full: PageId, own: PageId) -> PageId:
        """Cache ``own`` beside ``full`` and hold it; where there is one already, hold that and free ``own``."""
        if full in self._beside:
            self._pages.give([own])
            return self.hold(full)
        self._beside[full] = own
        self._held[full] = 1
        return own

    def take(self, count: int) -> list[PageId]:
        """Take ``count`` pages, of which so many must be free."""
        return self._pages.take(count)

    def give(self, page: PageId) -> None:
        """Return a page that is not cached."""
        self._pages.give([page])

    def evict(self, count: int) -> list[PageId]:
        """Free up to ``count`` cached pages that nobody holds; their full pages, which it returns, stay cached."""
        gone: list[PageId] = []
        while len(gone) < count and self._loose:
            full, _ = self._loose.popitem(last=False)
            self._pages.give([self._beside.pop(full)])
            gone.append(full)
        self.evicted += len(gone)
        return gone

    def forget(self, full: Iterable[PageId]) -> list[PageId]:
        """Free the window pages beside full pages that have left the cache; returns those that had one."""
        gone = [page for page in full if page in self._beside]
        for page in gone:
            del self._loose[page]
            self._pages.give([self._beside.pop(page)])
        return gone

    def check(self, cached: set[PageId], held: dict[PageId, int], own: list[PageId]) -> None:
        """Assert that every page has one owner.

        Args:
            cached: the full pages in the prefix tree.
            held: by full page, how many leases hold its window page.
            own: the leases' own window pages.
        """
        owned = sorted([*self._pages.pages(), *self._beside.values(), *own])
        assert owned == list(range(1, self.num_pages + 1)), "a window page is lost or has two owners"
        assert cached.issuperset(self._beside), "a window page is cached beside a full page that is not"
        assert self._held == held, "a hold on a window page was lost or forgotten"
        assert self._loose.keys() == self._beside.keys() - self._held.keys(), "a window page is held and evictable"
