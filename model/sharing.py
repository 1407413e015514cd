"""Groups of decode rows for attention: rows behind one prefix, and rows much longer than the rest.

Shared pages are read once for a group. Every request behind the same system prompt holds the same pages for it. Pages
are shared only through the prefix cache, so equal page numbers mean equal keys and values (Juravsky et al., 2024:
Hydragen).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.interface import Int32, StepInput

GROUP_ROWS = 12
"""Rows of one group; more rows behind one prefix make several groups.

Empty places are computed too: 12 costs 0.92 to 0.97 of a step with 16 where 32 rows are behind 4 prefixes.
"""
LEAST_ROWS = 8
"""Steps of fewer decode rows have no groups."""
GROUPS_AT_ONCE = 4
TURN_PAGES = 16
"""Pages that groups read in one turn of their loop."""
LEAST_PAGES = 4
"""A shorter prefix makes no group; the loop over all rows takes about as many pages in one turn."""


class Groups(NamedTuple):
    """Groups of decode rows, padded."""

    rows: Int32
    """int32[groups, GROUP_ROWS]: rows of the step; padding is the number of decode rows."""
    pages: Int32
    """int32[groups]: how many pages all rows of the group begin with; 0 is padding."""


def num_groups(decode_rows: int) -> int:
    """Places for groups in a step of this many decode rows."""
    return 0 if decode_rows < LEAST_ROWS else -(-decode_rows // (2 * GROUPS_AT_ONCE)) * GROUPS_AT_ONCE


def find_groups(step: StepInput, decode_rows: int, page_size: int) -> Groups:
    """Group the decode rows of ``step``, so that little is left to the loop that takes all rows in step.

    That loop turns as often as the row with most pages of its own needs. Rows behind one prefix make groups, greedily
    in the order of their page tables; a row that is much longer than the rest becomes a group of its own.
    """
    places, count = num_groups(decode_rows), step.num_decode
    groups = Groups(np.full((places, GROUP_ROWS), decode_rows, np.int32), np.zeros(places, np.int32))
    if not places or not count:
        return groups
    # only whole pages that were written before this step
    own = step.starts[:count] // page_size
    found = [*shared_runs(step.page_tables[0][:count], own)]
    for rows, shared in found:
        own[rows] -= shared
    grouped = np.concatenate([rows for rows, _ in found]) if found else np.zeros(0, np.intp)
    alone = np.setdiff1d(np.arange(count), grouped)
    level = choose_level(np.sort(own[alone])[::-1], int(own[grouped].max(initial=0)), decode_rows, places - len(found))
    found += [(np.array([row]), int(own[row] - level)) for row in alone if own[row] > level]
    # like beside like: those that are taken together turn as often as the longest
    for place, (rows, shared) in enumerate(sorted(found, key=lambda group: -group[1])):
        groups.rows[place, : len(rows)] = rows
        groups.pages[place] = shared
    return groups


def shared_runs(table: Int32, written: Int32) -> Iterator[tuple[NDArray[np.intp], int]]:
    """Rows with a common beginning of their page tables, and how many pages of it; ``written`` are each row's."""
    table = np.ascontiguousarray(table[:, : max(1, int(written.max()))])
    order = np.argsort(table.view(np.dtype((np.void, table.shape[1] * 4))).ravel(), kind="stable")
    table, written = table[order], written[order]
    differ = table[1:] != table[:-1]
    pages = np.where(differ.any(axis=1), differ.argmax(axis=1), table.shape[1])
    common = np.minimum(pages, np.minimum(written[1:], written[:-1]))
    for first, last, shared in runs(np.where(common < LEAST_PAGES, 0, common).tolist()):
        yield order[first:last], shared


def choose_level(own: Int32, least: int, decode_rows: int, places: int) -> int:
    """Pages that every row leaves to the common loop.

    Args:
      own: pages of the rows that are in no group, longest first; those above the level become groups.
      least: the level that rows in groups need.
      decode_rows: rows of the common loop, padding too.
      places: groups that may be added.
    """
    first, last = (-(-pages // LEAST_PAGES) * LEAST_PAGES for pages in (max(least, int(own.max(initial=0))), least))
    levels = np.arange(first, last - 1, -LEAST_PAGES)
    # GROUPS_AT_ONCE single rows turn as often as the first of them
    above = np.maximum(own[::GROUPS_AT_ONCE] - levels[:, None], 0)
    turns = np.sum((above + TURN_PAGES - 1) // TURN_PAGES, axis=1)
    cost = decode_rows * levels + GROUPS_AT_ONCE * TURN_PAGES * turns
    singles = len(own) - np.searchsorted(own[::-1], levels, side="right")
    return int(levels[np.argmin(np.where(singles <= places, cost, np.iinfo(np.int64).max))])


def runs(common: list[int]) -> list[tuple[int, int, int]]:
    """Runs (first, end, shared) of neighbours, where ``common[i]`` pages are shared by entries i and i + 1.

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
