"""Orders of the waiting queue."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.commands import SamplingParams
from scheduler.order import LOOKUP_LIMIT, ORDERS, WINDOW, Order, Queue, urgent_first
from scheduler.radix_cache import Hit
from scheduler.request import Request, Waits

# document: O-19

LIMIT = 3
"""Times that a request may be passed over in these tests."""


def waiting(
    number: int, prompt: list[int], *, max_new: int = 10, routing_key: str | None = None, namespace: str = ""
) -> Request:
    return Request(
        rid=str(number),
        group=None,
        origin=0,
        number=number,
        prompt=np.array([*prompt, 7], np.int32),
        params=SamplingParams(max_new_tokens=max_new),
        stream=True,
        namespace=namespace.encode(),
        routing_key=routing_key,
        max_new=max_new,
        stop_ids=frozenset(),
        max_inflight=1,
        arrived_ns=0,
        waits=Waits(0),
    )


def queue(
    requests: list[Request],
    *,
    running: tuple[Request, ...] = (),
    peek: Callable[[Request], Hit] = lambda request: Hit(len(request.prompt) - 1, 0),
    seed: int = 0,
    step: int = 0,
) -> Queue:
    """Pages of one token, and all of every prompt but its last token is cached unless told otherwise."""
    return Queue(requests, len(requests), running, peek, 1, seed, step, LIMIT)


@st.composite
def queues(draw: st.DrawFn) -> Queue:
    """Retracted requests stand at the head, as they do in the engine."""
    count = draw(st.integers(0, 12))
    retracted = draw(st.integers(0, 2))
    keys = st.sampled_from([None, "x", "y", "z"])
    requests: list[Request] = []
    for number in range(count):
        prompt = draw(st.lists(st.integers(0, 1), max_size=4))
        request = waiting(number, prompt, max_new=draw(st.integers(0, 3)), routing_key=draw(keys))
        request.retractions = int(number < retracted)
        request.passed_over = draw(st.integers(0, LIMIT))
        requests.append(request)
    running = tuple(waiting(100 + index, [], routing_key=draw(keys)) for index in range(draw(st.integers(0, 4))))
    return queue(requests, running=running, seed=draw(st.integers(0, 9)), step=draw(st.integers(0, 9)))


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@given(drawn=queues())
def test_every_order_hands_out_every_request_once_and_the_same_way_when_asked_again(order: Order, drawn: Queue) -> None:
    got = list(order(drawn))
    assert Counter(got) == Counter(drawn.waiting)
    assert got == list(order(drawn))


@pytest.mark.parametrize("name", sorted(set(ORDERS) - {"fcfs"}))
@given(drawn=queues())
def test_who_was_retracted_or_passed_over_too_often_comes_first_as_it_came(name: str, drawn: Queue) -> None:
    got = list(ORDERS[name](drawn))
    first = [r for r in drawn.waiting if r.retractions or r.passed_over >= LIMIT]
    if name == "routing-key" and not any(request.routing_key for request in drawn.running):
        assert got == list(drawn.waiting)
    elif name == "lpm":
        assert set(got[: len(first)]) == set(first)
    else:
        assert got[: len(first)] == first


def rest(order: str, drawn: Queue) -> list[Request]:
    return [r for r in ORDERS[order](drawn) if not (r.retractions or r.passed_over >= LIMIT)]


@given(drawn=queues())
def test_longest_prefix_and_longest_output_sort_by_what_they_say_and_arrival(drawn: Queue) -> None:
    by_prefix = rest("lpm", drawn)
    assert by_prefix == sorted(by_prefix, key=lambda r: (-drawn.peek(r).pages, r.number))
    by_output = rest("lof", drawn)
    assert by_output == sorted(by_output, key=lambda r: (-r.max_new, r.number))


@given(drawn=queues())
def test_routing_keys_that_run_come_first_by_how_many_run_and_the_rest_key_by_key(drawn: Queue) -> None:
    counts = Counter(request.routing_key for request in drawn.running if request.routing_key)
    if counts:
        got = rest("routing-key", drawn)
        arrived: dict[str | None, int] = {}
        for request in sorted(got, key=lambda r: r.number):
            arrived.setdefault(request.routing_key, request.number)
        assert got == sorted(got, key=lambda r: (-counts[r.routing_key], arrived[r.routing_key], r.number))


def by_definition(requests: list[Request], depth: int = 0) -> list[Request]:
    """Branches of the token tree, the heaviest first, then who ends here: written down once more, token by token."""
    ends = [r for r in requests if len(r.prompt) - 1 == depth]
    branches: dict[tuple[bytes, int], list[Request]] = {}
    for request in requests:
        if len(request.prompt) - 1 > depth:
            branches.setdefault((request.namespace, int(request.prompt[depth])), []).append(request)
    heaviest = sorted(branches.values(), key=lambda branch: (-len(branch), branch[0].number))
    return [r for branch in heaviest for r in by_definition(branch, depth + 1)] + ends


@pytest.mark.parametrize("name", ORDERS)
@given(drawn=queues(), urgencies=st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_by_urgency_every_level_is_in_the_given_order(name: str, drawn: Queue, urgencies: list[int]) -> None:
    levels = [[r for r in drawn.waiting if urgencies[r.number] == level] for level in (2, 1, 0)]
    got = list(urgent_first(ORDERS[name])(replace(drawn, levels=levels)))
    assert got == [r for level in levels for r in ORDERS[name](replace(drawn, waiting=level))]


@given(
    prompts=st.lists(
        st.tuples(st.lists(st.integers(0, 2), max_size=5), st.sampled_from(["", "a"])), max_size=LOOKUP_LIMIT // 8
    )
)
def test_depth_first_order_goes_through_the_heaviest_branch_first_and_children_before_parents(
    prompts: list[tuple[list[int], str]],
) -> None:
    requests = [waiting(number, prompt, namespace=space) for number, (prompt, space) in enumerate(prompts)]
    got = list(ORDERS["dfs-weight"](queue(requests)))
    assert [r.number for r in got] == [r.number for r in by_definition(requests)]


@pytest.mark.parametrize("name", ["lpm", "dfs-weight"])
def test_a_long_queue_is_served_first_come_first_served_without_a_look_at_the_cache(name: str) -> None:
    requests = [waiting(number, [1] * (number % 3)) for number in range(LOOKUP_LIMIT + 1)]
    peeks: list[int] = []

    def peek(request: Request) -> Hit:
        peeks.append(request.number)
        return Hit(len(request.prompt) - 1, 0)

    assert list(ORDERS[name](queue(requests, peek=peek))) == requests
    assert not peeks
    assert list(ORDERS[name](queue(requests[:-1], peek=peek))) != requests[:-1]
    assert len(peeks) == LOOKUP_LIMIT


def test_lots_are_drawn_anew_each_step_and_every_outcome_comes_up() -> None:
    requests = [waiting(number, []) for number in range(3)]
    seen = Counter(tuple(r.number for r in ORDERS["random"](queue(requests, seed=4, step=step))) for step in range(300))
    assert len(seen) == 6
    assert min(seen.values()) > 20


@pytest.mark.parametrize("name", ["lof", "random", "routing-key"])
def test_a_long_queue_is_sorted_at_its_head_only(name: str) -> None:
    requests = [waiting(number, [], max_new=number, routing_key=f"{number % 3}") for number in range(WINDOW + 50)]
    got = list(ORDERS[name](queue(requests, running=(waiting(0, [], routing_key="2"),))))
    assert got[WINDOW:] == requests[WINDOW:]
    assert set(got[:WINDOW]) == set(requests[:WINDOW])
    assert got[:WINDOW] != requests[:WINDOW]
