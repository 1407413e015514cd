"""Decode rows that share the beginning of their page tables, so that attention reads shared pages once for a group.

Every request behind the same system prompt holds the same pages for it. Pages are shared only through the prefix
cache, so equal page numbers mean equal keys and values (Juravsky et al., 2024: Hydragen).
"""

from typing import NamedTuple

import numpy as np

from model.interface import Int32, StepInput

GROUP_ROWS = 8
"""Rows of one group; more rows behind one prefix make several groups."""
GROUPS_AT_ONCE = 4
BLOCK_PAGES = 4
"""Shared prefixes are counted in blocks of this many pages."""


class Groups(NamedTuple):
    """Groups of decode rows, padded."""

    rows: Int32
    """int32[groups, GROUP_ROWS]: rows of the step; padding is the number of decode rows."""
    blocks: Int32
    """int32[groups]: blocks of pages that all rows of the group begin with; 0 is padding."""


def num_groups(decode_rows: int) -> int:
    """Places for groups in a step of this many decode rows; steps of few rows have none."""
    return 0 if decode_rows < GROUP_ROWS else -(-decode_rows // (2 * GROUPS_AT_ONCE)) * GROUPS_AT_ONCE


def find_groups(step: StepInput, decode_rows: int, page_size: int) -> Groups:
    """Group the decode rows of ``step``, greedily among rows in the order of their page tables."""
    places, count = num_groups(decode_rows), step.num_decode
    groups = Groups(np.full((places, GROUP_ROWS), decode_rows, np.int32), np.zeros(places, np.int32))
    if not places or count < 2:
        return groups
    # only whole blocks that were written before this step
    blocks = step.starts[:count] // (page_size * BLOCK_PAGES)
    table = np.ascontiguousarray(step.page_tables[0][:count, : max(1, int(blocks.max()) * BLOCK_PAGES)])
    order = np.argsort(table.view(np.dtype((np.void, table.shape[1] * 4))).ravel(), kind="stable")
    table, blocks = table[order], blocks[order]
    differ = table[1:] != table[:-1]
    pages = np.where(differ.any(axis=1), differ.argmax(axis=1), table.shape[1])
    common = np.minimum(pages // BLOCK_PAGES, np.minimum(blocks[1:], blocks[:-1])).tolist()
    for place, (first, last, shared) in enumerate(runs(common)):
        groups.rows[place, : last - first] = order[first:last]
        groups.blocks[place] = shared
    return groups


def runs(common: list[int]) -> list[tuple[int, int, int]]:
    """Runs (first, end, shared) of neighbours, where ``common[i]`` blocks are shared by entries i and i + 1.

    A run grows while that saves reading: a longer run may share less.
    """
    found: list[tuple[int, int, int]] = []
    first, shared = 0, 0
    for last, here in enumerate([*common, 0], 1):
        size = last - first
        narrowed = here if size == 1 else min(shared, here)
        if size < GROUP_ROWS and narrowed and narrowed * size >= shared * (size - 1):
            shared = narrowed
            continue
        if size > 1:
            found.append((first, last, shared))
        first, shared = last, 0
    return found
