"""Who holds the KV pages of each group, as plain figures: usage, and the fields of the idle memory check."""

from collections.abc import Sequence
from typing import NamedTuple

GROUP_NAMES = ("full", "swa")
"""Of the page groups, in their order: layers that see everything, layers with a sliding window."""


class GroupUse(NamedTuple):
    """Pages of one group."""

    total: int
    free: int
    evictable: int
    """Cached, and locked by nobody."""
    protected: int
    """Cached, and locked by a request."""

    @property
    def used(self) -> int:
        """Pages that could not be had now."""
        return self.total - self.free - self.evictable


def usage(groups: Sequence[GroupUse]) -> float:
    """The largest share of a group that is used, from 0 to 1 (document: M-6)."""
    return max(group.used / group.total for group in groups)


def idle_fields(groups: Sequence[GroupUse], page_size: int) -> dict[str, int]:
    """What the memory check says of each group, in tokens (document: M-12)."""
    fields: dict[str, int] = {}
    for name, group in zip(GROUP_NAMES, groups, strict=False):
        fields[f"{name}_tokens_per_layer"] = group.total * page_size
        fields[f"{name}_available_size"] = group.free * page_size
        fields[f"{name}_evictable_size"] = group.evictable * page_size
        fields[f"{name}_protected_size"] = group.protected * page_size
    return fields
