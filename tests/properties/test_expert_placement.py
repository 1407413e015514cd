"""Where experts stand: an order computed from loads is a permutation that never makes the devices less even."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sharding.experts import balanced, imbalance

# document: O-30


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_a_new_order_holds_every_expert_once_and_is_never_less_even(
    devices: int, run: int, data: st.DataObject
) -> None:
    load = data.draw(st.lists(st.integers(0, 2**40), min_size=devices * run, max_size=devices * run))
    order = balanced(load, devices)
    assert sorted(order) == list(range(len(load)))
    after = imbalance([load[place] for place in order], devices)
    assert after <= imbalance(load, devices)
    # and once even enough it stays as it is
    again = balanced([load[place] for place in order], devices)
    assert imbalance([load[order[place]] for place in again], devices) <= after


@given(st.lists(st.integers(0, 100), min_size=4, max_size=4))
def test_of_four_experts_on_two_devices_the_order_is_the_best_there_is_up_to_a_seventh(load: list[int]) -> None:
    best = min(imbalance([load[place] for place in order], 2) for order in itertools.permutations(range(4)))
    # the bound of Graham's rule on two machines: 7/6 of the best
    assert imbalance([load[place] for place in balanced(load, 2)], 2) <= best * 7 / 6 + 1e-9


def test_one_device_and_no_load_are_even() -> None:
    assert imbalance([5, 0, 1], 1) == 1.0
    assert imbalance([0, 0], 2) == 1.0
    assert imbalance([6, 2], 2) == 1.5
    assert balanced([0, 0, 0, 0], 2) == [0, 1, 2, 3]
