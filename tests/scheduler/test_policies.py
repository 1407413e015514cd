"""Small pure parts: the token ratio, the charging of time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scheduler.commands import Reason, SamplingParams
from scheduler.request import Request, Waits
from scheduler.token_ratio import RatioSettings, TokenRatio


def request(number: int, output: int = 0, max_new: int = 10) -> Request:
    made = Request(
        rid=str(number),
        group=None,
        origin=0,
        number=number,
        prompt=np.array([1, 2], np.int32),
        params=SamplingParams(max_new_tokens=max_new),
        stream=True,
        namespace=b"",
        max_new=max_new,
        stop_ids=frozenset(),
        max_inflight=1,
        arrived_ns=0,
        waits=Waits(0),
    )
    made.output.extend([3] * output)
    return made


def test_the_ratio_falls_to_its_minimum_in_the_documented_number_of_steps() -> None:
    # document: O-19
    ratio = TokenRatio(1.0, RatioSettings())
    assert ratio.value == 0.7
    for _ in range(599):
        ratio.decay()
    assert ratio.value > 0.7 * 0.14
    for _ in range(3):
        ratio.decay()
    assert ratio.value == 0.7 * 0.14
    ratio.reset()
    assert ratio.value == 0.7


def test_a_retraction_sets_the_ratio_from_what_the_survivors_have_said() -> None:
    ratio = TokenRatio(1.0, RatioSettings())
    ratio.retracted([request(1, 30, 100), request(2, 50, 100)])
    assert ratio.value == (80 + 40) / 201
    ratio.retracted([request(1, 9, 10)])
    assert ratio.value == 1.0


@given(
    start=st.floats(0.01, 1),
    floor=st.floats(0, 1),
    steps=st.integers(1, 50),
    conservativeness=st.floats(0.01, 10),
    more=st.integers(0, 20),
)
def test_any_ratio_falls_evenly_from_its_start_to_its_floor_and_no_further(
    start: float, floor: float, steps: int, conservativeness: float, more: int
) -> None:
    ratio = TokenRatio(conservativeness, RatioSettings(start=start, floor=floor, decay_steps=steps))
    first = ratio.value
    assert first == min(start * conservativeness, 1.0)
    values = [first]
    for _ in range(steps + more):
        ratio.decay()
        values.append(ratio.value)
    assert abs(values[steps // 2] - (first - (first - first * floor) * (steps // 2) / steps)) < 1e-9
    assert abs(values[-1] - first * floor) < 1e-9
    assert min(values) >= first * floor


def test_more_room_is_left_after_a_retraction_where_more_steps_are_asked_for() -> None:
    few, many = (TokenRatio(1.0, RatioSettings(retract_steps=steps)) for steps in (0, 50))
    for ratio in (few, many):
        ratio.retracted([request(1, 30, 100)])
    assert (few.value, many.value) == (30 / 101, 80 / 101)


@given(st.lists(st.tuples(st.sampled_from(Reason), st.integers(0, 1000)), max_size=20))
def test_the_parts_of_a_wait_sum_to_the_whole(changes: list[tuple[Reason, int]]) -> None:
    waits, now = Waits(100), 100
    for reason, elapsed in changes:
        now += elapsed
        waits.change(reason, now)
    waits.settle(now + 5)
    assert sum(waits.total_ns.values()) == now + 5 - 100
