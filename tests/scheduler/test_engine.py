"""What requests and commands lead to, end to end on the echo runner."""

import math
import traceback

import pytest
from msgspec import structs

from configs.schema import Eviction
from model.interface import Family, StepInput, StepOutput, Variant
from scheduler.assembly import assemble
from scheduler.commands import (
    Abort,
    AbortAll,
    Command,
    Delta,
    Finished,
    FinishReason,
    FlushCache,
    Generate,
    GetState,
    Rejected,
    StepStats,
    Stop,
)
from scheduler.loop import run
from scheduler.planner import Plan
from scheduler.tick import Tick
from tests.fakes import ScriptedPort, echo_token
from tests.scheduler.build import SETTINGS, SHAPES, Played, ask, play

TIGHT = structs.replace(SETTINGS, num_pages=14, conservativeness=0.01)


def plans(played: Played) -> list[Plan]:
    return [event for event in played.events if isinstance(event, Plan)]


def last_stats(played: Played) -> StepStats:
    return [event for event in played.events if isinstance(event, StepStats)][-1]


def rejected(command: Generate, settings=SETTINGS) -> Rejected:
    answer = play({0: [command]}, settings).of(command.rid)[-1]
    assert isinstance(answer, Rejected)
    return answer


def test_a_streaming_request_hears_of_every_token_and_another_only_of_the_end() -> None:
    # document: O-15, O-45
    played = play({0: [ask("s", [1, 2, 3], 4), ask("q", [1, 2, 3], 4, stream=False)]})
    assert [len(tokens_of(answer)) for answer in played.of("s")] == [1, 1, 1, 1]
    assert [len(tokens_of(answer)) for answer in played.of("q")] == [4]


def tokens_of(answer) -> list[int]:
    return answer.delta.tokens if isinstance(answer, Finished) else answer.tokens


def test_answers_of_one_step_travel_in_request_order_and_cached_tokens_come_once() -> None:
    prompt = list(range(1, 10))
    played = play({0: [ask("a", prompt, 3)], 50: [ask("b", prompt, 3)]})
    assert played.end("a").cached_tokens == 0
    assert played.end("b").cached_tokens == 8
    assert [d.cached_tokens for d in played.of("b") if isinstance(d, Delta)] == [8, 0]


def test_a_finished_prefix_is_shared_while_the_first_request_still_runs() -> None:
    # document: O-26
    prompt = list(range(1, 10))
    played = play({0: [ask("a", prompt, 12)], 3: [ask("b", prompt, 3)]})
    assert played.end("b").cached_tokens == 8


def test_nothing_is_cached_when_the_launch_file_says_so() -> None:
    prompt = list(range(1, 10))
    settings = structs.replace(SETTINGS, reuse=False)
    played = play({0: [ask("a", prompt, 3)], 50: [ask("b", prompt, 3)]}, settings)
    assert played.end("b").cached_tokens == 0
    assert last_stats(played).tokens_cached == 0


def test_the_next_turn_of_a_chat_finds_what_was_generated() -> None:
    # document: O-26
    prompt = list(range(1, 8))
    said = tokens_of(play({0: [ask("a", prompt, 9, stream=False)]}).of("a")[-1])
    turn = [*prompt, *said, 20, 21, 22]
    played = play({0: [ask("a", prompt, 9, stream=False)], 50: [ask("b", turn, 3)]})
    known = len(prompt) + len(said) - 1  # the last token generated was never read
    assert played.end("b").cached_tokens == known // SHAPES.page_size * SHAPES.page_size > len(prompt)


APART = [{"adapter": "x"}, {"extra_key": "x"}, {"cache_salt": "x"}, {"extra_key": "x", "cache_salt": "x"}]


@pytest.mark.parametrize("apart", APART)
def test_a_prefix_is_shared_only_under_the_same_adapter_key_and_salt(apart: dict[str, str]) -> None:
    prompt = list(range(1, 10))
    plain = ask("a", prompt, 3)
    played = play(
        {
            0: [plain],
            50: [structs.replace(plain, rid="b", **apart)],
            100: [structs.replace(plain, rid="c", **apart)],
            150: [structs.replace(plain, rid="d", extra_key="y", cache_salt="x")],
        },
        structs.replace(SETTINGS, adapters=("x",)),
    )
    assert [played.end(rid).cached_tokens for rid in "abcd"] == [0, 0, 8, 0]


@pytest.mark.parametrize(("eviction", "kept"), [("lru", "b"), ("lfu", "a"), ("fifo", "b"), ("priority", "a")])
def test_the_launch_file_says_what_goes_first_when_pages_run_short(eviction: Eviction, kept: str) -> None:
    prompts = {"a": list(range(1, 10)), "b": list(range(11, 20))}
    settings = structs.replace(SETTINGS, num_pages=15, eviction=eviction, priority="high_first")
    first = structs.replace(ask("a", prompts["a"], 2), priority=1)
    second = structs.replace(ask("b", prompts["b"], 2), priority=0)
    again = structs.replace(first, rid="a2")
    large = structs.replace(ask("c", list(range(21, 40)), 2), priority=0)
    commands: list[Command] = [first, again, second, large]
    script = {50 * turn: [command] for turn, command in enumerate(commands)}
    last = {kept: structs.replace(ask("last", prompts[kept], 1), priority=0)}
    played = play(script | {400: [last[kept]]}, settings)
    assert played.end("last").cached_tokens == 8


def test_no_plan_after_an_abort_was_read_contains_the_request() -> None:
    played = play({0: [ask("a", [1, 2, 3], 30), ask("b", [4, 5], 10)], 5: [Abort(rid="a")]})
    gone = False
    for event in played.events:
        if isinstance(event, Tick):
            gone = gone or any(isinstance(command, Abort) for _, command in event.commands)
        elif isinstance(event, Plan) and gone:
            named = [*event.decode, *event.admit, *(piece.request for piece in event.pieces)]
            assert all(request.rid != "a" for request in named)
    assert gone
    assert played.end("a").reason is FinishReason.ABORT
    assert played.end("b").output_tokens == 10


def test_an_abort_by_group_ends_all_its_requests_and_no_others() -> None:
    grouped = [structs.replace(ask(rid, [1, 2], 30), group="g") for rid in ("a", "b")]
    played = play({0: [*grouped, ask("gg", [1, 2], 5)], 4: [Abort(rid="g")]})
    assert [played.end(rid).reason for rid in ("a", "b", "gg")] == [
        FinishReason.ABORT,
        FinishReason.ABORT,
        FinishReason.LENGTH,
    ]


def test_abort_all_ends_what_waits_and_what_runs() -> None:
    script: dict[int, list[Command]] = {0: [ask(str(i), [1, 2], 30) for i in range(9)], 4: [AbortAll()]}
    played = play(script)
    assert {played.end(str(i)).reason for i in range(9)} == {FinishReason.ABORT}


def test_a_stop_command_counts_only_the_tokens_before_the_stop_string() -> None:
    # document: O-21, O-45
    played = play({0: [ask("a", [1, 2, 3], 30)], 8: [Stop(rid="a", num_tokens=2, matched="END")]})
    end = played.end("a")
    assert (end.reason, end.matched, end.output_tokens) == (FinishReason.STOP, "END", 2)


def test_a_stop_command_for_a_request_that_has_ended_changes_nothing() -> None:
    played = play({0: [ask("a", [1, 2, 3], 3)], 50: [Stop(rid="a", num_tokens=2, matched="END")]})
    assert played.end("a").reason is FinishReason.LENGTH
    assert sum(isinstance(answer, Finished) for answer in played.of("a")) == 1


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers() -> None:
    answer = rejected(ask("a", [1] * 64, 1))
    assert (answer.status, answer.code) == (400, "context_length_exceeded")
    assert "64" in answer.message
    assert "prompt has 70 tokens" in rejected(ask("a", [1] * 70, 1)).message


def test_a_prompt_larger_than_the_pool_is_refused() -> None:
    answer = rejected(ask("a", [1] * 29, 1), TIGHT)
    assert (answer.status, answer.code) == (400, "request_too_large")


def test_a_prompt_that_just_fits_the_pool_gets_one_token() -> None:
    assert play({0: [ask("a", [1] * 28, 9)]}, TIGHT).end("a").output_tokens == 1


def test_ids_outside_the_vocabulary_are_refused() -> None:
    assert rejected(ask("a", [1, 50], 1)).param == "prompt"
    assert rejected(ask("a", [1], 1, stop_token_ids=(50,))).param == "stop_token_ids"
    assert rejected(ask("a", [1], 1, logit_bias=((50, 1.0),))).param == "logit_bias"


def test_a_full_queue_is_refused_with_a_bounded_time_to_try_again() -> None:
    settings = structs.replace(SETTINGS, max_queued=2)
    played = play({0: [ask(str(i), [1, 2], 3) for i in range(3)]}, settings)
    answer = played.of("2")[-1]
    assert isinstance(answer, Rejected)
    assert (answer.status, answer.code, answer.retry_after_s) == (503, "queue_full", 120.0)
    assert played.end("1").output_tokens == 3


def test_a_second_request_with_the_same_id_is_refused_and_the_first_goes_on() -> None:
    played = play({0: [ask("a", [1, 2], 3), ask("a", [3], 1)]})
    first, *_, last = played.of("a")
    assert isinstance(first, Rejected)
    assert first.code == "duplicate_id"
    assert isinstance(last, Finished)
    assert last.output_tokens == 3


def test_flushing_is_refused_while_a_request_runs_and_empties_the_cache_when_idle() -> None:
    # document: O-23
    played = play({0: [ask("a", [1, 2, 3, 4], 6), FlushCache(call="x")], 50: [FlushCache(call="y")]})
    assert [(reply.call, reply.success) for reply in played.replies()] == [("x", False), ("y", True)]
    assert last_stats(played).tokens_cached == 0


def test_the_state_names_what_runs_and_what_waits() -> None:
    # document: O-33, O-41
    played = play({0: [ask(str(i), [1, 2], 9) for i in range(6)], 6: [GetState(call="x")]})
    state = played.replies()[0].state
    assert (state["num_running"], state["num_waiting"]) == (4, 2)
    assert state["running_rids"] == "0 1 2 3"


def test_retraction_changes_no_token_and_is_counted() -> None:
    script: dict[int, list[Command]] = {0: [ask("a", [1, 2, 3, 4], 16), ask("b", [5, 6, 7, 8], 16)]}
    tight, roomy = play(script, structs.replace(TIGHT, num_pages=17)), play(script)
    assert tight.end("b").retractions == last_stats(tight).retractions == 1
    for rid in "ab":
        assert [t for d in tight.of(rid) for t in tokens_of(d)] == [t for d in roomy.of(rid) for t in tokens_of(d)]
    assert tight.end("b").times.waited_ns["retracted"] + tight.end("b").times.waited_ns["no_pages"] > 0


def test_penalty_state_is_rebuilt_from_prompt_and_output_on_every_admission() -> None:
    script: dict[int, list[Command]] = {
        0: [ask("a", [1, 2, 3, 4], 16), ask("b", [5, 6, 6, 8], 16, frequency_penalty=0.5)]
    }
    played = play(script, structs.replace(TIGHT, num_pages=17))
    rows = [row for step in played.runner.steps for row in step.counts]
    assert len(rows) == 1 + played.end("b").retractions == 2
    first, second = rows
    assert dict(zip(first.ids.tolist(), first.prompt.tolist(), strict=True)) == {5: 1, 6: 2, 8: 1}
    assert not first.output.any()
    output = [t for d in played.of("b") for t in tokens_of(d)]
    produced = dict(zip(second.ids.tolist(), second.output.tolist(), strict=True))
    count = int(second.output.sum())
    assert 0 < count < 16
    assert {t: n for t, n in produced.items() if n} == {t: output[:count].count(t) for t in output[:count]}


def test_only_steps_with_a_row_that_asks_for_it_are_full() -> None:
    played = play({0: [ask("a", [1, 2], 6), ask("b", [3, 4], 6, min_new_tokens=3)]})
    variants = [step.variant for step in played.runner.steps]
    assert variants[0] is Variant.FULL
    assert variants[-1] is Variant.LEAN
    banned = [step.full.banned_ids.max() for step in played.runner.steps if step.full]
    assert len(banned) == 3
    assert set(banned) == {49}


def test_bias_reaches_the_row_that_asked_and_no_other() -> None:
    played = play({0: [ask("a", [1], 2), ask("b", [2], 2, logit_bias=((7, -100.0),))]})
    full = played.runner.steps[0].full
    assert full is not None
    assert full.bias_ids[1, :2].tolist() == [7, -1]
    assert full.bias[1, 0] == -100
    assert (full.bias_ids[0] == -1).all()


def test_scoring_a_long_prompt_leaves_every_other_step_to_decoding() -> None:
    prompt = list(range(1, 41))
    played = play({0: [ask("d", [1, 2], 30)], 2: [ask("s", prompt, 1, prompt_logprobs=2)]})
    families = [step.family for step in played.runner.steps]
    assert families.count(Family.SCORE) == math.ceil(39 / 8)
    pairs = list(zip(families, families[1:], strict=False))
    assert (Family.SCORE, Family.SCORE) not in pairs
    delta = played.end("s").delta
    assert delta.prompt_logprobs is not None
    assert [entry.token for entry in delta.prompt_logprobs] == prompt


def test_prompt_scores_wanted_late_let_the_cache_serve_what_comes_before() -> None:
    # document: O-15
    prompt = list(range(1, 21))
    again = ask("b", prompt, 1, prompt_logprobs=0, prompt_logprobs_from=11)
    played = play({0: [ask("a", prompt, 1)], 50: [again]})
    assert played.end("b").cached_tokens == 10
    assert len(played.end("b").delta.prompt_logprobs or ()) == 9


def test_no_output_tokens_wanted_means_none_and_the_prompt_is_cached() -> None:
    played = play({0: [ask("a", list(range(1, 10)), 0)], 50: [ask("b", list(range(1, 10)), 1)]})
    end = played.end("a")
    assert (end.reason, end.output_tokens, end.delta.tokens) == (FinishReason.LENGTH, 0, [])
    assert played.end("b").cached_tokens == 8


def test_the_figures_add_up_when_all_is_done() -> None:
    # document: M-7, O-31
    played = play({0: [ask(str(i), [1, 2, 3, i], 5) for i in range(7)], 3: [Abort(rid="6")]})
    stats = last_stats(played)
    assert (stats.finished, stats.aborted, stats.num_running, stats.num_queued) == (6, 1, 0, 0)
    assert stats.output_tokens >= 30
    assert stats.tokens_used == stats.waiting_prompt_tokens == stats.pending_prompt_tokens == 0
    assert stats.gen_throughput == 0
    sizes = sum(step.size for step in played.runner.steps)
    assert stats.scheduled_tokens + stats.padded_tokens == sizes
    assert stats.steps_decode + stats.steps_mixed + stats.steps_score == len(played.runner.steps)
    assert stats.new_token_ratio == 0.7


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_figures_show_an_idle_engine_from_the_step_that_answers_the_last_request(depth: int) -> None:
    settings = structs.replace(SETTINGS, depth=depth, max_inflight=depth)
    stop = echo_token([1, 2, 3, echo_token([1, 2, 3], SHAPES.vocab_size)], SHAPES.vocab_size)
    # only the second token tells that it ends, and rows of it are in flight by then
    played = play({0: [ask("a", [1, 2, 3], 9, stop_token_ids=(stop,)), ask("b", [3, 4], 1)]}, settings)
    assert played.end("a").output_tokens == 2
    stats = [event for event in played.events if isinstance(event, StepStats)]
    assert all(s.tokens_used > 0 for s in stats if s.num_running)
    assert any(s.num_running for s in stats)
    over = [s for s in stats if s.finished == 2]
    assert len(over) > depth
    for s in over:
        assert (s.num_running, s.num_queued, s.tokens_used, s.gen_throughput) == (0, 0, 0, 0)


class Failing:
    """A runner whose device fails, when a step is launched or when it is read."""

    def __init__(self, at_launch: bool) -> None:
        self.shapes = SHAPES
        self._at_launch = at_launch

    def launch(self, step: StepInput) -> "Failing":
        if self._at_launch:
            raise RuntimeError("out of memory")
        return self

    def ready(self) -> bool:
        return True

    def result(self) -> StepOutput:
        raise RuntimeError("out of memory")

    def compiled_late(self) -> int:
        return 0


@pytest.mark.parametrize("at_launch", [True, False])
def test_a_step_that_fails_ends_the_loop_and_the_error_names_program_and_requests(at_launch: bool) -> None:
    port = ScriptedPort({0: [(0, ask("one", [1, 2, 3], 9)), (0, ask("two", [4], 5))]})
    engine = assemble(port, Failing(at_launch), SETTINGS, ())
    with pytest.raises(RuntimeError) as caught:
        run(engine, 1)
    text = "".join(traceback.format_exception_only(caught.value))
    assert "in a mixed step of size 8 with 2 rows: two one[0:3]" in text


def test_an_idle_engine_takes_no_turns() -> None:
    # document: O-22, M-16, M-17
    played = play({0: [ask("a", [1, 2], 3)], 5_000: [ask("b", [1, 2], 3)]})
    assert sum(isinstance(event, Tick) for event in played.events) < 20


def test_a_plan_is_cut_to_a_smaller_program_rather_than_padded_by_more_than_a_quarter() -> None:
    played = play({0: [ask("a", list(range(1, 11)), 1)]})
    assert [(step.size, step.num_tokens) for step in played.runner.steps] == [(8, 8), (8, 2)]
    assert len(plans(played)) > 2


def test_a_retracted_request_goes_before_all_that_wait() -> None:
    script: dict[int, list[Command]] = {0: [ask(r, [i, i + 1, i + 2, 9], 16) for i, r in enumerate("abc")]}
    played = play(script, structs.replace(TIGHT, num_pages=17))
    admitted = [request.rid for plan in plans(played) for request in plan.admit]
    assert admitted == ["a", "b", "c", "b", "c"]


def test_small_plans_and_nothing_in_flight_twice_make_disjoint_micro_batches_that_take_turns() -> None:
    # document: O-7, O-28
    settings = structs.replace(SETTINGS, max_rows=2, depth=1, max_inflight=0)
    played = play({0: [ask(str(i), [i + 1], 8) for i in range(4)]}, settings)
    rows = [request.rid for plan in plans(played) for request in plan.decode]
    for end in range(8, 32):
        counts = [rows[:end].count(str(i)) for i in range(4)]
        assert max(counts) - min(counts) <= 2, counts
