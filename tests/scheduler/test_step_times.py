from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from model.interface import Family, Variant
from scheduler.step_times import MAX_FILE_BYTES, StepClock, StepTable, StepTime, read_table, write_table
from tests.scheduler.tables import table

NAME = (Family.DECODE, Variant.LEAN, 8)


def at(tokens: int, seconds: float) -> StepTime:
    return StepTime(family=NAME[0], variant=NAME[1], size=NAME[2], context_tokens=tokens, seconds=seconds)


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
    assert str(path) in str(refused.value)


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
    clock = StepClock((at(500, 0.25),))
    assert {clock.duration_ns(NAME, tokens) for tokens in (0, 500, 10**9)} == {250_000_000}


def test_between_two_measurements_lies_the_line_and_beyond_them_it_goes_on() -> None:
    clock = StepClock((at(300, 0.03), at(100, 0.01)))
    assert [clock.duration_ns(NAME, tokens) for tokens in (0, 100, 200, 300, 400)] == [
        10_000_000,
        10_000_000,
        20_000_000,
        30_000_000,
        40_000_000,
    ]


POINTS = st.lists(st.tuples(st.integers(0, 10**6), st.floats(1e-6, 10)), min_size=1, max_size=6)


@given(points=POINTS, tokens=st.integers(0, 2 * 10**6))
def test_measured_contexts_take_their_time_and_none_is_faster_than_the_fastest(
    points: list[tuple[int, float]], tokens: int
) -> None:
    rising = sorted(dict(points).items())
    seconds = sorted(second for _, second in rising)
    rising = [(context, second) for (context, _), second in zip(rising, seconds, strict=True)]
    clock = StepClock(tuple(at(context, second) for context, second in rising))
    for context, second in rising:
        assert clock.duration_ns(NAME, context) == round(second * 1e9)
    assert clock.duration_ns(NAME, tokens) >= round(seconds[0] * 1e9)
    assert clock.duration_ns(NAME, tokens + 1) >= clock.duration_ns(NAME, tokens)


def test_the_schema_holds_no_key_and_no_address() -> None:
    assert StepTable.__struct_fields__.count("config") == 1
    assert table().config.serving.api_key is None
