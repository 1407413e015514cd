"""Small pure parts: the token ratio, the orders, the charging of time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scheduler.commands import Reason, SamplingParams
from scheduler.order import LPM_LIMIT, fcfs, longest_prefix
from scheduler.radix_cache import Hit
from scheduler.request import Request, Waits
from scheduler.token_ratio import DECAY_STEPS, TokenRatio


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
    ratio = TokenRatio(1.0)
    assert ratio.value == 0.7
    for _ in range(DECAY_STEPS - 1):
        ratio.decay()
    assert ratio.value > 0.7 * 0.14
    for _ in range(3):
        ratio.decay()
    assert ratio.value == 0.7 * 0.14
    ratio.reset()
    assert ratio.value == 0.7


def test_a_retraction_sets_the_ratio_from_what_the_survivors_have_said() -> None:
    ratio = TokenRatio(1.0)
    ratio.retracted([request(1, 30, 100), request(2, 50, 100)])
    assert ratio.value == (80 + 40) / 201
    ratio.retracted([request(1, 9, 10)])
    assert ratio.value == 1.0


def test_longest_prefix_order_puts_retracted_requests_first_and_keeps_arrival_among_equals() -> None:
    queue = [request(number) for number in range(4)]
    queue[2].retractions = 1
    hits = {0: 1, 1: 5, 2: 0, 3: 5}
    ordered = longest_prefix(queue, 4, lambda r: Hit(hits[r.number], 0))
    assert [r.number for r in ordered] == [2, 1, 3, 0]


def test_a_long_queue_is_served_first_come_first_served_without_a_look_at_the_cache() -> None:
    queue = [request(number) for number in range(LPM_LIMIT + 1)]
    peeks: list[int] = []

    def peek(r: Request) -> Hit:
        peeks.append(r.number)
        return Hit(r.number, 0)

    assert list(longest_prefix(queue, len(queue), peek)) == queue == list(fcfs(queue, len(queue), peek))
    assert not peeks


@given(st.lists(st.tuples(st.sampled_from(Reason), st.integers(0, 1000)), max_size=20))
def test_the_parts_of_a_wait_sum_to_the_whole(changes: list[tuple[Reason, int]]) -> None:
    waits, now = Waits(100), 100
    for reason, elapsed in changes:
        now += elapsed
        waits.change(reason, now)
    waits.settle(now + 5)
    assert sum(waits.total_ns.values()) == now + 5 - 100
