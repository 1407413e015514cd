"""Which decode rows are grouped over a shared prefix, and what a group reads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.interface import StepInput
from model.layers.paged_xla import Blocking, Prefixes, attend_rows
from model.sharing import (
    GROUP_ROWS,
    GROUPS_AT_ONCE,
    LEAST_PAGES,
    TURN_PAGES,
    choose_level,
    find_groups,
    num_groups,
    runs,
)
from tests.model.harness import Row, decode, tiny_shapes

PAGE_SIZE = 4
ROWS = 24
"""More than one group takes."""
SHAPES = dataclasses.replace(tiny_shapes(64), decode_rows=(2, ROWS), max_rows=ROWS)


POOL_PAGES = 50


@jax.jit
def attended(table: jax.Array, length: jax.Array, prefixes: Prefixes | None) -> jax.Array:
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(0, 0.5, (ROWS, 4, 8)), jnp.float32)
    keys, values = jnp.asarray(rng.normal(size=(2, POOL_PAGES, 2, PAGE_SIZE, 8)), jnp.float32)
    return attend_rows(q, keys, values, table, length, prefixes, Blocking(PAGE_SIZE, 4, 8))


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


def common_pages(step: StepInput) -> np.ndarray:
    """Whole pages that each row leaves to the loop over all rows."""
    left = step.starts[: step.num_decode] // PAGE_SIZE
    for rows, pages in zip(*find_groups(step, ROWS, PAGE_SIZE), strict=True):
        left[rows[rows < ROWS]] -= pages
    return left


def groups_of(step: StepInput) -> list[tuple[int, int]]:
    """(rows, shared pages) of every group, sorted."""
    groups = find_groups(step, ROWS, PAGE_SIZE)
    return sorted((int((rows < ROWS).sum()), int(pages)) for rows, pages in zip(*groups, strict=True) if pages)


def test_a_row_much_longer_than_the_rest_does_not_make_them_wait() -> None:
    fresh = iter(range(1, 1000))
    lengths = [4] * 10 + [30, 28]
    step = step_of([[next(fresh) for _ in range(length)] for length in lengths], [4 * n - 1 for n in lengths])
    assert common_pages(step).max() <= LEAST_PAGES
    few = step_of([[next(fresh) for _ in range(30)] for _ in range(3)], [119] * 3)
    assert common_pages(few).max() == 0
    even = step_of([[next(fresh) for _ in range(20)] for _ in range(ROWS)], [79] * ROWS)
    assert not find_groups(even, ROWS, PAGE_SIZE).pages.any()


@example([45, 29, 29, 29, 29, 9], 0, 5)
@given(st.lists(st.integers(0, 64), max_size=16), st.integers(0, 20), st.integers(0, 8))
def test_the_chosen_level_costs_least(own: list[int], least: int, places: int) -> None:
    longest = np.array(sorted(own, reverse=True), np.int32)
    level = choose_level(longest, least, 16, places)

    def cost(level: int) -> int:
        above = [n - level for n in longest.tolist() if n > level]
        return 16 * level + 4 * sum(-(-n // TURN_PAGES) * TURN_PAGES for n in above[::4])

    top = max([least, *own]) + LEAST_PAGES
    possible = [n for n in range(0, top + 1, LEAST_PAGES) if n >= least and sum(longest > n) <= places]
    assert level in possible
    assert all(cost(level) <= cost(other) for other in possible)


@given(steps())
def test_groups_share_written_pages_and_no_row_is_in_two(step: StepInput) -> None:
    groups = find_groups(step, ROWS, PAGE_SIZE)
    members = groups.rows[groups.rows < ROWS]
    assert len(set(members.tolist())) == members.size
    for rows, pages in zip(groups.rows, groups.pages, strict=True):
        real = rows[rows < ROWS]
        assert (pages > 0) == (real.size > 0)
        assert real.size < 2 or pages >= LEAST_PAGES
        shared = step.page_tables[0][real, :pages]
        assert (shared == shared[:1]).all()
        assert (step.starts[real] >= pages * PAGE_SIZE).all()


def test_rows_behind_one_prefix_are_grouped_as_far_as_it_reaches() -> None:
    prefix, other = list(range(1, 10)), list(range(50, 59))
    tables = [[*prefix, 20 + i] for i in range(GROUP_ROWS + 2)] + [[*other, 70 + i] for i in range(3)] + [[99]]
    assert groups_of(step_of(tables, [36] * (GROUP_ROWS + 5) + [2])) == [(2, 9), (3, 9), (GROUP_ROWS, 9)]


def test_a_row_whose_prefix_ends_a_page_earlier_stays_with_the_others() -> None:
    """Where a prompt goes on, its first token may melt into the last one of the prefix."""
    prefix = list(range(1, 20))
    for before, after in ((9, 0), (0, 9), (4, 5)):
        tables = [[*prefix, 20 + i] for i in range(before)] + [[*prefix[:18], 90, 91]]
        tables += [[*prefix, 40 + i] for i in range(after)]
        step = step_of(tables, [79] * 10)
        assert groups_of(step) == [(10, 18)]
        assert common_pages(step).max() == 1


def test_a_prefix_of_a_page_or_two_makes_no_group() -> None:
    tables = [[*range(1, LEAST_PAGES), 20 + i, 60 + i] for i in range(12)]
    assert groups_of(step_of(tables, [4 * LEAST_PAGES + 3] * 12)) == []


def test_a_run_gives_up_length_only_where_that_saves_reading() -> None:
    assert runs([5, 5, 1, 5]) == [(0, 3, 5), (3, 5, 5)]
    assert runs([2, 1, 1, 1, 1]) == [(0, 6, 1)]
    assert runs([0, 0]) == []


@given(st.integers(1, 300))
def test_there_are_places_for_every_possible_group(rows: int) -> None:
    assert num_groups(rows) == 0 or num_groups(rows) * 2 >= rows


@settings(max_examples=20)
@given(st.data())
def test_pages_read_once_for_a_group_give_what_every_row_reads_for_itself(data: st.DataObject) -> None:
    """Whole pages of any number, more groups than one turn takes, rows in no group."""
    groups, members, width = 2 * GROUPS_AT_ONCE, 3, 2 * TURN_PAGES
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    table = rng.integers(0, POOL_PAGES, (ROWS, width)).astype(np.int32)
    chosen, shared = np.full((groups, members), ROWS, np.int32), np.zeros(groups, np.int32)
    begin, free = np.zeros(ROWS, np.int32), [*rng.permutation(ROWS)]
    for group in range(data.draw(st.integers(1, groups))):
        shared[group] = data.draw(st.integers(1, width - 1))
        rows = [free.pop() for _ in range(data.draw(st.integers(1, members)))]
        chosen[group, : len(rows)] = rows
        table[rows, : shared[group]] = table[rows[0], : shared[group]]
        begin[rows] = shared[group]
    length = rng.integers(begin * PAGE_SIZE + 1, width * PAGE_SIZE + 1).astype(np.int32)
    prefixes = Prefixes(jnp.asarray(chosen), jnp.asarray(shared), jnp.asarray(begin))
    alike = attended(jnp.asarray(table), jnp.asarray(length), None)
    assert np.abs(np.asarray(attended(jnp.asarray(table), jnp.asarray(length), prefixes) - alike)).max() < 2e-5
