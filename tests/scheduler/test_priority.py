"""Urgency, the order by it, whom a full queue drops, who gives way, and who is overdue: pure functions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.commands import FinishReason, SamplingParams
from scheduler.deadlines import TimeLimits, overdue_running, overdue_waiting
from scheduler.preemption import Preemption, Shortfall, victims
from scheduler.priority import Direction, Levels, displaced, urgency
from scheduler.request import Finish, Request, Waits

INT32 = st.integers(-(2**31), 2**31 - 1)
URGENCIES = st.lists(st.integers(-2, 2), max_size=12)


def request(number: int, urgency: int = 0, prompt_len: int = 2, arrived_ns: int = 0) -> Request:
    return Request(
        rid=str(number),
        group=None,
        origin=0,
        number=number,
        prompt=np.zeros(prompt_len, np.int32),
        params=SamplingParams(max_new_tokens=4),
        stream=True,
        namespace=b"",
        max_new=4,
        stop_ids=frozenset(),
        max_inflight=1,
        arrived_ns=arrived_ns,
        waits=Waits(arrived_ns),
        urgency=urgency,
    )


def requests(urgencies: list[int]) -> list[Request]:
    return [request(number, each) for number, each in enumerate(urgencies)]


@given(one=INT32, other=INT32)
def test_the_two_directions_are_opposite_and_a_request_without_priority_is_the_least_urgent(
    one: int, other: int
) -> None:
    assert (urgency(one, "high_first") > urgency(other, "high_first")) == (one > other)
    assert (urgency(one, "low_first") > urgency(other, "low_first")) == (one < other)
    directions: tuple[Direction, ...] = ("high_first", "low_first")
    assert all(urgency(None, direction) <= urgency(one, direction) for direction in directions)
    assert urgency(one, "off") == urgency(None, "off")


@given(steps=st.lists(st.tuples(st.sampled_from(["add", "back", "remove"]), st.integers(-2, 2), st.integers(0, 20))))
def test_the_levels_hold_the_queue_by_urgency_and_list_those_that_never_ran_the_youngest_of_the_least_urgent_first(
    steps: list[tuple[str, int, int]],
) -> None:
    levels, queue = Levels(), list[Request]()
    for number, (step, level, index) in enumerate(steps):
        if step == "add" or not queue:
            queue.append(request(number, level))
            levels.add(queue[-1])
        else:
            gone = queue.pop(index % len(queue))
            levels.remove(gone)
            if step == "back":
                gone.retractions += 1
                queue.insert(0, gone)
                levels.put_back(gone)
        assert [r for each in levels for r in each] == sorted(queue, key=lambda r: -r.urgency)
        assert all(len({r.urgency for r in each}) == 1 for each in levels)
        never_ran = [r for r in queue if not r.retractions]
        assert list(levels.never_run()) == sorted(never_ran, key=lambda r: (r.urgency, -r.number))


@given(
    urgencies=URGENCIES,
    lengths=st.lists(st.integers(1, 5), min_size=12, max_size=12),
    newcomer=st.integers(-2, 3),
    count=st.integers(-1, 4),
    tokens=st.integers(-1, 12),
)
def test_a_full_queue_drops_no_more_than_needed_and_nobody_in_vain(
    urgencies: list[int], lengths: list[int], newcomer: int, count: int, tokens: int
) -> None:
    levels = Levels()
    for number, each in enumerate(urgencies):
        levels.add(request(number, each, lengths[number]))
    gone = displaced(levels.never_run(), newcomer, count, tokens)
    weaker = [r for r in levels.never_run() if r.urgency < newcomer]
    assert gone == weaker[: len(gone)]

    def enough(dropped: list[Request]) -> bool:
        return len(dropped) >= count and sum(r.prompt_len for r in dropped) >= tokens

    assert enough(gone) or not enough(weaker)
    assert not gone or not enough(gone[:-1])
    assert enough(gone) or not gone


@given(
    urgencies=URGENCIES,
    worth=st.lists(st.integers(0, 9), min_size=12, max_size=12),
    given_way=st.lists(st.integers(0, 2), min_size=12, max_size=12),
    threshold=st.integers(0, 3),
    limit=st.integers(1, 2),
    slots=st.integers(0, 1),
    tokens=st.integers(0, 30),
)
def test_whoever_gives_way_is_weaker_by_the_threshold_may_still_be_asked_and_does_not_do_it_in_vain(
    urgencies: list[int],
    worth: list[int],
    given_way: list[int],
    threshold: int,
    limit: int,
    slots: int,
    tokens: int,
) -> None:
    running = requests(urgencies)
    for r in running:
        r.preemptions = given_way[r.number]
    newcomer, rule = request(99, 2), Preemption(threshold, limit)
    chosen = victims(newcomer, running, Shortfall(slots, (tokens,)), lambda r: (worth[r.number],), rule)
    willing = [r for r in running if newcomer.urgency - r.urgency > threshold and r.preemptions < limit]
    willing.sort(key=lambda r: (r.urgency, -r.number))
    assert list(chosen) == willing[: len(chosen)]

    def enough(gone: list[Request]) -> bool:
        freed = sum(worth[r.number] for r in gone)
        return len(gone) >= slots and (freed >= tokens or len(gone) == len(running))

    assert bool(chosen) == (enough(willing) and not enough([]))
    if chosen:
        assert enough(list(chosen))
        assert not enough(list(chosen[:-1])) or len(chosen) == len(running)


def test_nobody_gives_way_while_another_one_is_about_to_leave() -> None:
    running = requests([0, 0])
    assert victims(request(9, 5), running, Shortfall(1, (0,)), lambda _: (1,), Preemption(0, 1)) == (running[1],)
    running[0].finish = Finish(FinishReason.LENGTH, None, 1)
    assert victims(request(9, 5), running, Shortfall(1, (0,)), lambda _: (1,), Preemption(0, 1)) == ()


@given(ages=st.lists(st.integers(0, 20), max_size=8), ran=st.integers(0, 3), limit=st.integers(0, 20))
def test_those_are_overdue_that_waited_longer_than_the_limit_and_never_ran(
    ages: list[int], ran: int, limit: int
) -> None:
    waiting = [request(n, arrived_ns=100 - age) for n, age in enumerate(sorted(ages, reverse=True))]
    before = [request(100 + n, arrived_ns=0) for n in range(ran)]
    for each in before:
        each.retractions = 1
    late = overdue_waiting([*before, *waiting], TimeLimits(waiting_ns=limit), 100)
    assert late == ([r for r in waiting if 100 - r.arrived_ns > limit] if limit else [])


@given(ages=st.lists(st.integers(0, 20), max_size=8), limit=st.integers(0, 20))
def test_those_are_overdue_that_first_ran_longer_ago_than_the_limit(ages: list[int], limit: int) -> None:
    started = requests([0] * len(ages))
    for each, age in zip(started, sorted(ages, reverse=True), strict=True):
        each.admitted_ns = 100 - age
    late = overdue_running(started, TimeLimits(running_ns=limit), 100)
    assert late == ([r for r in started if 100 - r.admitted_ns > limit] if limit else [])


@pytest.mark.parametrize("limits", [TimeLimits(waiting_ns=1), TimeLimits(running_ns=1)])
def test_each_clock_has_its_own_limit(limits: TimeLimits) -> None:
    one = request(1)
    assert overdue_waiting([one], limits, 5) == ([one] if limits.waiting_ns else [])
    assert overdue_running([one], limits, 5) == ([one] if limits.running_ns else [])
