"""Plans made of views that are built by hand: the corners that whole runs seldom reach."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.interface import Family, SlotId
from scheduler.commands import Reason, SamplingParams
from scheduler.kv_cache import NO_HIT, Lease
from scheduler.planner import View, plan
from scheduler.radix_cache import RadixCache
from scheduler.request import Request, Waits
from tests.scheduler.build import SHAPES

SIZE = SHAPES.page_size


def running(number: int, prompt_len: int, computed: int, **params: int) -> Request:
    """A running request with pages for just what is computed of it."""
    request = Request(
        rid=str(number),
        group=None,
        origin=0,
        number=number,
        prompt=np.arange(prompt_len, dtype=np.int32),
        params=SamplingParams(max_new_tokens=4, **params),
        stream=False,
        namespace=b"",
        max_new=4,
        stop_ids=frozenset(),
        max_inflight=1,
        arrived_ns=0,
        waits=Waits(0),
    )
    request.computed = computed
    pages = -(-computed // SIZE)
    request.lease = Lease(SlotId(number), b"", RadixCache(SIZE).root, 0, (list(range(pages)),), pages * SIZE)
    return request


def view(*requests: Request, available: int = 0, max_rows: int = 4, last_family: Family | None = None) -> View:
    """Nothing waits."""
    return View(
        running=requests,
        waiting=(),
        free_slots=SHAPES.max_rows - len(requests),
        available=(available,),
        peek=lambda _: NO_HIT,
        reclaimable=lambda lease: len(lease.pages[0]),
        shapes=SHAPES,
        max_rows=max_rows,
        token_ratio=0.5,
        last_family=last_family,
    )


SCORED = {"prompt_logprobs": 0}


@pytest.mark.parametrize("params", [{}, SCORED])
def test_when_no_prompt_can_go_on_for_lack_of_pages_the_youngest_of_the_shortest_goes_back(
    params: dict[str, int],
) -> None:
    stuck = [running(number, 12, 4, **params) for number in (1, 2)]
    for request in stuck:
        request.next_score = 4 if params else 0
    assert plan(view(*stuck)).retract == (stuck[1],)
    assert not plan(view(*stuck, available=1)).retract


@pytest.mark.parametrize("params", [{}, SCORED])
def test_nobody_goes_back_while_rows_in_flight_may_yet_free_pages(params: dict[str, int]) -> None:
    stuck = [running(number, 12, 4, **params) for number in (1, 2)]
    for request in stuck:
        request.next_score = 4 if params else 0
    stuck[0].unread = 1
    decided = plan(view(*stuck))
    assert (decided.drain, decided.retract) == ((stuck[0],), ())


def test_a_lone_scored_prompt_gets_the_pages_that_there_are_and_the_rest_later() -> None:
    request = running(1, 12, 4, **SCORED)
    request.next_score = 4
    [piece] = plan(view(request, available=1)).pieces
    assert (piece.start, piece.length, piece.samples) == (4, SIZE, False)


def test_after_a_score_step_others_have_a_turn_and_a_score_step_follows_when_there_are_none() -> None:
    scored, other = running(1, 12, 4, **SCORED), running(2, 6, 5)
    scored.next_score = 4
    after = {"available": 8, "last_family": Family.SCORE}
    assert plan(view(scored, other, **after)).decode == (other,)
    assert plan(view(scored, **after)).family is Family.SCORE


@given(count=st.integers(1, 9), max_rows=st.integers(1, 4), turns=st.integers(1, 30))
def test_rows_beyond_what_a_plan_holds_take_turns_evenly(count: int, max_rows: int, turns: int) -> None:
    rows = [running(number, 8, 7) for number in range(count)]
    planned: Counter[int] = Counter(dict.fromkeys(range(count), 0))
    for step in range(1, turns + 1):
        decided = plan(view(*rows, available=count, max_rows=max_rows))
        assert len(decided.decode) == min(count, max_rows)
        assert {b.reason for b in decided.blocked} <= {Reason.TOKEN_BUDGET}
        for request in decided.decode:
            request.planned = step
        planned.update(request.number for request in decided.decode)
        assert max(planned.values()) - min(planned.values()) <= 1
