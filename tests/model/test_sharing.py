"""Which decode rows are grouped over a shared prefix."""

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.interface import StepInput
from model.sharing import BLOCK_PAGES, GROUP_ROWS, choose_level, find_groups, num_groups, runs
from tests.model.harness import Row, decode, tiny_shapes

PAGE_SIZE = 4
ROWS = 24
"""More than one group takes."""
SHAPES = dataclasses.replace(tiny_shapes(64), decode_rows=(2, ROWS), max_rows=ROWS)


def step_of(tables: list[list[int]], starts: list[int]) -> StepInput:
    ids = np.zeros(200, np.int32)
    rows = [Row(ids, start, start + 1, np.array(pages)) for pages, start in zip(tables, starts, strict=True)]
    return decode(SHAPES, ROWS, rows)


@st.composite
def steps(draw: st.DrawFn) -> StepInput:
    """Rows whose tables branch off one another, as the prefix cache makes them."""
    tables: list[list[int]] = []
    fresh = iter(range(1, 10_000))
    for _ in range(draw(st.integers(1, ROWS))):
        parent = draw(st.sampled_from(tables)) if tables else []
        kept = draw(st.integers(0, len(parent)))
        length = draw(st.integers(max(kept, 1), 32))
        tables.append(parent[:kept] + [next(fresh) for _ in range(length - kept)])
    starts = [draw(st.integers((len(table) - 1) * PAGE_SIZE, len(table) * PAGE_SIZE - 1)) for table in tables]
    return step_of(tables, starts)


def common_turns(step: StepInput) -> np.ndarray:
    """Blocks that each row leaves to the loop over all rows."""
    left = step.starts[: step.num_decode] // (PAGE_SIZE * BLOCK_PAGES)
    for rows, blocks in zip(*find_groups(step, ROWS, PAGE_SIZE), strict=True):
        left[rows[rows < ROWS]] -= blocks
    return left


def test_a_row_much_longer_than_the_rest_does_not_make_them_wait() -> None:
    fresh = iter(range(1, 1000))
    lengths = [4] * 10 + [30, 28]
    step = step_of([[next(fresh) for _ in range(length)] for length in lengths], [4 * n - 1 for n in lengths])
    assert common_turns(step).max() == 0
    few = step_of([[next(fresh) for _ in range(30)] for _ in range(3)], [119] * 3)
    assert common_turns(few).max() == 0
    even = step_of([[next(fresh) for _ in range(20)] for _ in range(ROWS)], [79] * ROWS)
    assert not find_groups(even, ROWS, PAGE_SIZE).blocks.any()


@given(st.lists(st.integers(0, 20), max_size=16), st.integers(0, 5), st.integers(0, 8))
def test_the_chosen_level_costs_least(own: list[int], least: int, places: int) -> None:
    longest = np.array(sorted(own, reverse=True), np.int32)
    level = choose_level(longest, least, 16, places)

    def cost(level: int) -> int:
        above = [n - level for n in longest.tolist() if n > level]
        return 16 * level + 4 * sum(above[::4])

    possible = [n for n in {least, *own} if n >= least and sum(longest > n) <= places]
    assert level in possible or not own
    assert all(cost(level) <= cost(other) for other in possible)


@given(steps())
def test_groups_share_written_blocks_and_no_row_is_in_two(step: StepInput) -> None:
    groups = find_groups(step, ROWS, PAGE_SIZE)
    members = groups.rows[groups.rows < ROWS]
    assert len(set(members.tolist())) == members.size
    for rows, blocks in zip(groups.rows, groups.blocks, strict=True):
        real = rows[rows < ROWS]
        assert (blocks > 0) == (real.size > 0)
        if blocks:
            shared = step.page_tables[0][real, : blocks * BLOCK_PAGES]
            assert (shared == shared[0]).all()
            assert (step.starts[real] >= blocks * BLOCK_PAGES * PAGE_SIZE).all()


def test_rows_behind_one_prefix_are_grouped_as_far_as_it_reaches() -> None:
    prefix, other = list(range(1, 10)), list(range(50, 59))
    tables = [[*prefix, 20 + i] for i in range(GROUP_ROWS + 2)] + [[*other, 70 + i] for i in range(3)] + [[99]]
    groups = find_groups(step_of(tables, [36] * (GROUP_ROWS + 5) + [2]), ROWS, PAGE_SIZE)
    sizes = sorted((int((rows < ROWS).sum()), int(blocks)) for rows, blocks in zip(*groups, strict=True) if blocks)
    assert sizes == [(2, 2), (3, 2), (GROUP_ROWS, 2)]


def test_a_run_gives_up_length_only_where_that_saves_reading() -> None:
    assert runs([5, 5, 1, 5]) == [(0, 3, 5), (3, 5, 5)]
    assert runs([2, 1, 1, 1, 1]) == [(0, 6, 1)]
    assert runs([0, 0]) == []


@given(st.integers(1, 300))
def test_there_are_places_for_every_possible_group(rows: int) -> None:
    assert num_groups(rows) == 0 or num_groups(rows) * 2 >= rows
