"""What a prefix cache tells whoever keeps an account of the pages in it."""

from collections.abc import Sequence
from typing import Literal, Protocol

from model.interface import PageId

Medium = Literal["GPU", "CPU_PINNED", "DISK"]
"""Where a page lies, in the words that routers know."""
FULL_GROUP, WINDOW_GROUP = 0, 1
"""Page groups; where layers slide, a window page is named by the full page beside which it is cached."""


class CacheListener(Protocol):
    """Hears of every page that enters or leaves a prefix cache, on the engine's thread. Must not block."""

    def stored(
        self,
        namespace: bytes,
        parent: PageId | None,
        key: bytes,
        pages: Sequence[PageId],
        medium: Medium = "GPU",
        group: int = FULL_GROUP,
    ) -> None:
        """``pages`` entered the cache: they hold ``key`` (int32 token ids), which follows page ``parent``.

        Args:
            namespace: of the prefix.
            parent: the full page before them on the same medium; None where a prefix begins.
            key: the bytes of exactly their tokens.
            pages: page numbers of ``medium``; those of full pages whatever the group is.
            medium: where they lie.
            group: of the pages that entered; window pages do so after the full pages that name them.
        """
        ...

    def removed(self, pages: Sequence[PageId], medium: Medium = "GPU", group: int = FULL_GROUP) -> None:
        """``pages`` have left the cache."""
        ...
