"""Plans where the window group of hybrid pools is what runs short."""

from dataclasses import replace

import msgspec
import pytest

from configs.hybrid import least_window_pages
from scheduler.commands import Delta, Reason
from scheduler.estimate import window_tokens
from scheduler.planner import Plan
from tests.fakes import echo_token
from tests.scheduler.build import SETTINGS, SHAPES, Played, ask, play

# document: M-6, O-25

WINDOW = 8
HYBRID = replace(SHAPES, window=WINDOW)
LEAST = least_window_pages(WINDOW, SHAPES.page_size, SETTINGS.max_inflight)
PROMPTS = {"a": [1] * 12, "b": [2] * 12, "c": [3] * 12}
NEW = 20


def played(window_pages: int, **changes: object) -> Played:
    """Three requests whose windows the full group holds easily."""
    settings = msgspec.structs.replace(SETTINGS, window_pages=window_pages, **changes)  # pyright: ignore[reportArgumentType]
    return play({0: [ask(rid, prompt, NEW) for rid, prompt in PROMPTS.items()]}, settings, HYBRID)


def plans(result: Played) -> list[Plan]:
    return [event for event in result.events if isinstance(event, Plan)]


def said(result: Played, rid: str) -> list[int]:
    deltas = [answer for answer in result.of(rid) if isinstance(answer, Delta)]
    return [token for delta in (*deltas, result.end(rid).delta) for token in delta.tokens]


def alone(prompt: list[int]) -> list[int]:
    sequence = list(prompt)
    for _ in range(NEW):
        sequence.append(echo_token(sequence, SHAPES.vocab_size))
    return sequence[len(prompt) :]


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("window_pages", [LEAST, 2 * LEAST, 4 * LEAST])
def test_every_request_ends_with_the_text_it_would_have_alone(window_pages: int, reuse: bool) -> None:
    for conservativeness in (0.01, 1.0):
        result = played(window_pages, reuse=reuse, conservativeness=conservativeness)
        for rid, prompt in PROMPTS.items():
            assert said(result, rid) == alone(prompt)


def test_who_does_not_fit_the_window_group_waits_for_pages() -> None:
    tight, roomy = plans(played(LEAST)), plans(played(4 * LEAST))
    assert any(reason is Reason.NO_PAGES for plan in tight for _, reason in plan.blocked)
    assert not any(plan.retract for plan in tight)
    assert max(len(plan.decode) for plan in tight) == 1
    assert max(len(plan.decode) for plan in roomy) == len(PROMPTS)


def test_a_request_takes_a_window_and_what_of_a_chunk_is_more() -> None:
    request = next(plan.admit[0] for plan in plans(played(LEAST)) if plan.admit)
    assert request.max_new == len(request.output), "it has ended, so that only its known tokens count"
    assert window_tokens(request, left=12, window=100, chunk=8) == 12
    assert window_tokens(request, left=12, window=5, chunk=8) == 3 + 5
    assert window_tokens(request, left=12, window=5, chunk=3) == 5
