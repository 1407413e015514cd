"""The figures that an engine reports after every step."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from scheduler.commands import Command, StepStats
from tests.scheduler.build import SETTINGS, Played, ask, play

TIGHT = structs.replace(SETTINGS, num_pages=14, conservativeness=0.01)
ABSENT = ("num_grammar_queue", "spec_accept_length", "num_prealloc_queue", "num_transfer_queue")


def reports(played: Played) -> list[StepStats]:
    return [event for event in played.events if isinstance(event, StepStats)]


prompts = st.lists(st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=40), st.integers(1, 8)), max_size=8)


@given(prompts, st.integers(0, 2))
def test_the_steps_reported_one_by_one_add_up_to_the_totals(asked: list[tuple[list[int], int]], depth: int) -> None:
    # document: M-1, M-7, O-31
    requests: list[Command] = [ask(str(i), prompt, count) for i, (prompt, count) in enumerate(asked)]
    played = play({0: requests}, structs.replace(SETTINGS, depth=depth, max_inflight=depth))
    seen = reports(played)
    if not asked:
        assert seen == []
        return
    steps = [stats for stats in seen if stats.family]
    last = seen[-1]
    assert sum(stats.step_tokens for stats in steps) == last.scheduled_tokens
    assert sum(stats.size - stats.step_tokens for stats in steps) == last.padded_tokens
    families = [stats.family for stats in steps]
    assert families.count("decode") == last.steps_decode
    assert families.count("mixed") == last.steps_mixed
    computed = last.scheduled_tokens - last.decode_tokens
    assert computed <= last.prompt_tokens - last.cached_tokens <= computed + len(asked)
    for stats in seen:
        assert stats.tokens_used + stats.tokens_free <= stats.tokens_total
        assert stats.tokens_free == stats.tokens_total - stats.tokens_cached or stats.tokens_used


def test_taking_prompts_in_shows_a_throughput_until_the_engine_is_idle() -> None:
    # document: M-1, P-5
    seen = reports(play({0: [ask("a", list(range(40)), 6)]}))
    assert any(stats.input_throughput > 0 for stats in seen)
    assert (seen[-1].input_throughput, seen[-1].gen_throughput, seen[-1].tokens_used) == (0, 0, 0)
    assert seen[-1].tokens_free == seen[-1].tokens_total - seen[-1].tokens_cached


def test_what_a_retraction_gives_up_is_counted_in_requests_and_tokens() -> None:
    # document: M-1, M-7
    last = reports(play({0: [ask(str(i), [i + 1] * 4, 16) for i in range(3)]}, TIGHT))[-1]
    assert last.retractions > 0
    assert last.retracted_input_tokens == 4 * last.retractions
    assert last.retractions <= last.retracted_output_tokens < 16 * last.retractions


def test_what_the_engine_has_not_is_absent_and_not_zero() -> None:
    # document: M-7, M-8, M-20
    last = reports(play({0: [ask("a", [1, 2], 2)]}))[-1]
    assert all(structs.asdict(last)[name] is None for name in ABSENT)
