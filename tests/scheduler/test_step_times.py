from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from model.interface import Family, Sampling, StepInput, Variant
from scheduler.step_times import (
    MAX_FILE_BYTES,
    Repeated,
    StepClock,
    StepTable,
    StepTime,
    context_tokens,
    piece_pairs,
    read_table,
    write_table,
)
from tests.scheduler.tables import table

NAME = (Family.DECODE, Variant.LEAN, 8)
PAGE = 4


def at(tokens: int, seconds: float, pairs: int = 0, repeated: int = 0) -> StepTime:
    return StepTime(
        family=NAME[0],
        variant=NAME[1],
        size=NAME[2],
        context_tokens=tokens,
        pairs=pairs,
        repeated_tokens=repeated,
        seconds=seconds,
    )


def step(
    decode: Sequence[int], pieces: Sequence[tuple[int, int]] = (), tables: Sequence[Sequence[int]] | None = None
) -> StepInput:
    """Decode rows behind so many tokens, pieces of (start, length), and the pages of each row."""
    starts = np.array([*decode, *(start for start, _ in pieces)], np.int32)
    lengths = np.array([*(1 for _ in decode), *(length for _, length in pieces)], np.int32)
    rows = len(starts)
    zeros, still = np.zeros(rows, np.int32), np.zeros(rows, np.float32)
    table = np.arange(rows * 100, dtype=np.int32).reshape(rows, 100) if tables is None else np.array(tables, np.int32)
    return StepInput(
        step=1,
        family=NAME[0],
        variant=NAME[1],
        size=NAME[2],
        num_decode=len(decode),
        num_tokens=int(lengths.sum()),
        tokens=zeros,
        slots=zeros,
        starts=starts,
        lengths=lengths,
        offsets=zeros,
        sample=lengths > 0,
        page_tables=(table,),
        sampling=Sampling(still, zeros, still, still, zeros.astype(np.uint32)),
        full=None,
    )


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = table()
    write_table(tmp_path / "steps.json", written)
    assert read_table(tmp_path / "steps.json") == written


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b"[" * 10_000, b" " * (MAX_FILE_BYTES + 1)])
def test_what_is_no_table_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is no table of step times") as refused:
        read_table(path)
    assert str(path)[-30:] in str(refused.value)


def test_a_table_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_table(tmp_path / "absent")


def test_a_table_from_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    write_table(path, table())
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ConfigError, match="version"):
        read_table(path)


def test_one_measurement_counts_at_every_context() -> None:
    clock = StepClock([at(500, 0.25)], PAGE)
    assert {clock.took_ns(step([tokens])) for tokens in (0, 500, 10**6)} == {250_000_000}


def test_between_two_measurements_lies_the_line_and_beyond_them_it_goes_on() -> None:
    clock = StepClock([at(300, 0.03), at(100, 0.02)], PAGE)
    assert [clock.took_ns(step([tokens - 1])) for tokens in (1, 100, 200, 300, 400)] == [
        pytest.approx(ns, abs=2) for ns in (15_050_000, 20_000_000, 25_000_000, 30_000_000, 35_000_000)
    ]


COST = st.floats(0, 1e-3)
ROWS = st.lists(st.integers(0, 5000), max_size=5)
PIECES = st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 300)), max_size=4)


@given(base=st.floats(1e-4, 1), token=COST, pair=COST, rows=ROWS, pieces=PIECES)
def test_what_a_program_takes_by_itself_by_token_and_by_pair_is_found_from_four_measurements(
    base: float, token: float, pair: float, rows: list[int], pieces: list[tuple[int, int]]
) -> None:
    def seconds(one: StepInput) -> float:
        return base + token * context_tokens(one) + pair * piece_pairs(one)

    steps = [step([9] * 4), step([999] * 4), step([9] * 2, [(9, 60)]), step([], [(999, 30), (999, 30)])]
    times = [at(context_tokens(one), seconds(one), piece_pairs(one)) for one in steps]
    asked = step(rows or [5], pieces)
    assert StepClock(times, PAGE).took_ns(asked) == pytest.approx(seconds(asked) * 1e9, rel=1e-3, abs=10)


MEASURED = st.lists(
    st.tuples(st.integers(0, 10**6), st.floats(1e-6, 10), st.integers(0, 10**6)), min_size=1, max_size=6
)


@given(measured=MEASURED, tokens=st.integers(0, 10**6))
def test_whatever_was_measured_no_step_is_free_and_more_context_is_never_faster(
    measured: list[tuple[int, float, int]], tokens: int
) -> None:
    clock = StepClock([at(*one) for one in measured], PAGE)
    assert 1 <= clock.took_ns(step([tokens])) <= clock.took_ns(step([tokens + 1]))


@given(
    lengths=st.lists(st.integers(0, 39), min_size=1, max_size=6),
    pages=st.lists(st.lists(st.integers(1, 3), min_size=10, max_size=10), min_size=6, max_size=6),
)
def test_tokens_of_full_pages_that_several_decode_rows_hold_are_repeated(
    lengths: list[int], pages: list[list[int]]
) -> None:
    # as in the cache a page stands for itself and all before it
    ids: dict[tuple[int, ...], int] = {}
    pages = [[ids.setdefault(tuple(table[: end + 1]), len(ids)) for end in range(10)] for table in pages]
    held = [page for start, table in zip(lengths, pages, strict=False) for page in table[: start // PAGE]]
    one = step(lengths, [(8, 4)], [*pages[: len(lengths)], pages[0]])  # a piece shares nothing
    counter = Repeated()
    assert counter.tokens(one, PAGE) == (len(held) - len(set(held))) * PAGE == counter.tokens(one, PAGE)


def test_a_repeated_token_costs_less_by_what_was_measured() -> None:
    behind = [[1, 2, 3, 4, 5, *range(row, row + 5)] for row in (10, 20)]
    shared = step([40, 40], tables=behind)
    times = [at(0, 0.01), at(1000, 0.02 - 0.008 * 0.1, repeated=100), at(1000, 0.016, repeated=500)]
    clock = StepClock(times, PAGE)
    assert clock.took_ns(shared) == pytest.approx(1e9 * (0.01 + 1e-5 * (82 - 0.8 * 20)), abs=10)
    assert clock.took_ns(step([40, 40])) == pytest.approx(1e9 * (0.01 + 1e-5 * 82), abs=10)


def test_the_schema_holds_no_key_and_no_address() -> None:
    assert StepTable.__struct_fields__.count("config") == 1
    assert table().config.serving.api_key is None
