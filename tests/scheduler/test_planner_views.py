"""Plans made of views that are built by hand: the corners that whole runs seldom reach."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.interface import Family, PageId, SlotId
from scheduler.commands import FinishReason, Reason, SamplingParams
from scheduler.kv_cache import Lease
from scheduler.planner import View, plan
from scheduler.radix_cache import Hit, RadixCache
from scheduler.request import Finish, Request, Waits
from tests.scheduler.build import SHAPES

SIZE = SHAPES.page_size


def running(number: int, prompt_len: int, computed: int, scored_from: int | None = None) -> Request:
    """A running request with pages for just what is computed of it."""
    request = Request(
        rid=str(number),
        group=None,
        origin=0,
        number=number,
        prompt=np.arange(prompt_len, dtype=np.int32),
        params=SamplingParams(
            max_new_tokens=4, prompt_logprobs=None if scored_from is None else 0, prompt_logprobs_from=scored_from or 0
        ),
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
    request.lease = Lease(
        SlotId(number), b"", RadixCache(SIZE).root, 0, ([PageId(page) for page in range(pages)],), pages * SIZE
    )
    return request


def view(*requests: Request, available: int = 0, max_rows: int = 4, last_family: Family | None = None) -> View:
    """Nothing waits."""
    return View(
        running=requests,
        waiting=(),
        free_slots=SHAPES.max_rows - len(requests),
        available=(available,),
        peek=lambda _: Hit(0, 0),
        reclaimable=lambda lease: (len(lease.pages[0]),),
        shapes=SHAPES,
        max_rows=max_rows,
        token_ratio=0.5,
        last_family=last_family,
    )


COMPUTED = 4
FIRST_SCORED = COMPUTED + 1
"""First position whose log probability the next token of such a prompt gives."""


@pytest.mark.parametrize("scored_from", [None, FIRST_SCORED])
def test_when_no_prompt_can_go_on_for_lack_of_pages_the_youngest_of_the_shortest_goes_back(
    scored_from: int | None,
) -> None:
    stuck = [running(number, 12, COMPUTED, scored_from) for number in (1, 2)]
    assert plan(view(*stuck)).retract == (stuck[1],)
    assert not plan(view(*stuck, available=1)).retract


@pytest.mark.parametrize("scored_from", [None, FIRST_SCORED])
def test_nobody_goes_back_while_rows_in_flight_may_yet_free_pages(scored_from: int | None) -> None:
    stuck = [running(number, 12, COMPUTED, scored_from) for number in (1, 2)]
    stuck[0].unread = 1
    decided = plan(view(*stuck))
    assert (decided.drain, decided.retract) == ((stuck[0],), ())


def test_decode_rows_without_pages_wait_for_an_ended_request_rather_than_send_another_back() -> None:
    row, other, ended = (running(number, COMPUTED + 1, COMPUTED) for number in (1, 2, 3))
    ended.finish, ended.unread = Finish(FinishReason.STOP, 7, 1), 1
    assert plan(view(row, other, ended)).drain == (ended,)
    assert plan(view(row, other)).retract == (other,)


def test_a_lone_scored_prompt_gets_the_pages_that_there_are_and_the_rest_later() -> None:
    request = running(1, 12, COMPUTED, FIRST_SCORED)
    [piece] = plan(view(request, available=1)).pieces
    assert (piece.start, piece.length, piece.samples) == (4, SIZE, False)


def test_after_a_score_step_others_have_a_turn_and_a_score_step_follows_when_there_are_none() -> None:
    scored, other = running(1, 12, COMPUTED, FIRST_SCORED), running(2, 6, 5)
    assert plan(view(scored, other, available=8, last_family=Family.MIXED)).family is Family.SCORE
    assert plan(view(scored, other, available=8, last_family=Family.SCORE)).decode == (other,)
    assert plan(view(scored, available=8, last_family=Family.SCORE)).family is Family.SCORE


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


def test_decode_rows_go_back_when_either_page_group_runs_short() -> None:
    row, other = (running(number, COMPUTED + 1, COMPUTED) for number in (1, 2))
    for available in ((5, 0), (0, 5), (1, 0)):
        short = replace(view(row, other), available=available, reclaimable=lambda lease: (2, 2))
        assert plan(short).retract == (other,)
    # one page more in the shorter group alone would not do, and two do
    assert plan(replace(view(row, other), available=(5, 1), reclaimable=lambda lease: (2, 2))).retract == (other,)
    assert plan(replace(view(row, other), available=(5, 2))).decode == (row, other)


def test_a_prompt_gets_as_much_as_the_shorter_page_group_holds() -> None:
    request = running(1, 12, COMPUTED)
    [piece] = plan(replace(view(request), available=(9, 2))).pieces
    assert piece.length == 2 * SIZE
