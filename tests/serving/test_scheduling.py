"""Orders of the queue, refusals on arrival and the prefix cache as a client meets them, against the real scheduler."""

from concurrent.futures import Future
from pathlib import Path

import httpx2
import pytest

from tests.serving.fakes import CONTEXT
from tests.serving.real_engine import PATIENCE_S, RealEngine, real_engine

LONG = 300
FIRST, SECOND = [11] * 24, [12] * 24
Asked = tuple[str, list[int], int]
"""Id, prompt, output tokens."""


def ask(
    engine: RealEngine, rid: str, prompt: list[int], max_new_tokens: int = 4, **body: object
) -> "Future[httpx2.Response]":
    params = {"max_new_tokens": max_new_tokens, "ignore_eos": True}
    return engine.send("/generate", rid, input_ids=prompt, sampling_params=params, **body)


def meta(engine: RealEngine, reply: "Future[httpx2.Response]") -> dict[str, object]:
    engine.step_until(reply.done)
    assert reply.result().status_code == 200, reply.result().text
    return reply.result().json()["meta_info"]


# document: O-19
@pytest.mark.parametrize(
    ("order", "queue", "tried"),
    [
        ("fcfs", [("a", [5], 4), ("b", FIRST, 4), ("c", [6], 9)], ["a", "b", "c"]),
        (
            "lpm",
            [("none", [5] * 24, 4), ("half", FIRST[:12] + [5] * 8, 4), ("all", [*FIRST, 5], 4)],
            ["all", "half", "none"],
        ),
        (
            "dfs-weight",
            [("two", [*SECOND, 5], 4), ("one", [*FIRST, 5], 4), ("one-too", [*FIRST, 6], 4)],
            ["one", "two", "one-too"],
        ),
        ("lof", [("a", [5], 3), ("b", [6], 9), ("c", [7], 6)], ["b", "c", "a"]),
    ],
)
def test_the_queue_is_tried_in_the_order_that_the_launch_file_names(
    folder: Path, order: str, queue: list[Asked], tried: list[str]
) -> None:
    with real_engine(folder, order=order) as engine:
        for number, prompt in enumerate((FIRST, SECOND)):
            meta(engine, ask(engine, f"warm-{number}", prompt))
        replies = [ask(engine, "running", [9], LONG), *(ask(engine, *one) for one in queue)]
        engine.gate.open()
        assert [reply.result(PATIENCE_S).status_code for reply in replies] == [200] * 4
        assert engine.watch.admitted == ["warm-0", "warm-1", "running", *tried]


def test_routing_keys_that_run_come_first(folder: Path) -> None:
    with real_engine(folder, num_rows=2, order="routing-key") as engine:
        replies = [ask(engine, "running", [9], LONG, routing_key="y"), ask(engine, "shorter", [8], 60)]
        replies += [ask(engine, rid, [5], routing_key=rid[0]) for rid in ("x", "y", "x-too")]
        engine.gate.open()
        assert [reply.result(PATIENCE_S).status_code for reply in replies] == [200] * 5
        assert engine.watch.admitted == ["running", "shorter", "y", "x", "x-too"]


def test_a_queue_in_random_order_is_answered_whole(folder: Path) -> None:
    with real_engine(folder, order="random", order_seed=7) as engine:
        replies = [ask(engine, f"r{number}", [5 + number]) for number in range(6)]
        engine.gate.open()
        assert [reply.result(PATIENCE_S).status_code for reply in replies] == [200] * 6
        assert sorted(engine.watch.admitted) == [f"r{number}" for number in range(6)]


@pytest.mark.parametrize(
    ("max_passed_over", "tried"), [(0, ["large", "s0", "s1", "s2"]), (2, ["s0", "s1", "large", "s2"])]
)
def test_smaller_requests_pass_one_that_does_not_fit_as_often_as_the_launch_file_allows(
    folder: Path, max_passed_over: int, tried: list[str]
) -> None:
    setting = {"num_rows": 4, "num_pages": 110, "max_passed_over": max_passed_over, "conservativeness": 0.01}
    with real_engine(folder, **setting) as engine:
        running = ask(engine, "running", [9] * 200, 60)
        large = ask(engine, "large", [8] * 300, 4)
        small = [ask(engine, f"s{number}", [5 + number], 4) for number in range(3)]
        engine.gate.open()
        replies = (running, large, *small)
        assert [reply.result(PATIENCE_S).status_code for reply in replies] == [200] * 5
        assert engine.watch.admitted == ["running", *tried]


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"input_ids": [10**6]}, "invalid_request", "below the vocabulary"),
        ({"sampling_params": {"stop_token_ids": [10**6]}}, "invalid_request", "below the vocabulary"),
        ({"sampling_params": {"logit_bias": {"1000000": 1}}}, "invalid_request", "below the vocabulary"),
        ({"input_ids": [5] * CONTEXT}, "context_length_exceeded", f"{CONTEXT}"),
        ({"input_ids": [5] * 200}, "request_too_large", "holds 160"),
    ],
)
def test_what_can_never_be_served_is_refused_on_arrival_with_the_limit(
    folder: Path, body: dict[str, object], code: str, said: str
) -> None:
    with real_engine(folder, num_pages=40) as engine:
        refused = engine.post("/generate", **({"input_ids": [5]} | body)).result(PATIENCE_S)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)
        assert said in refused.json()["error"]["message"]
        assert "retry-after" not in refused.headers
        assert meta(engine, ask(engine, "next", [5]))["completion_tokens"] == 4


def test_the_cache_is_flushed_only_while_nothing_runs(folder: Path) -> None:
    with real_engine(folder) as engine:
        # long enough to run still when the flush comes
        running = ask(engine, "running", FIRST, 200)
        refused = engine.post("/flush_cache")
        engine.step_until(refused.done)
        assert refused.result().status_code == 400
        assert "1 requests run, 0 wait" in refused.result().json()["message"]
        meta(engine, running)
        assert meta(engine, ask(engine, "again", [*FIRST, 5]))["cached_tokens"] == len(FIRST)
        assert engine.post("/flush_cache").result(PATIENCE_S).status_code == 200
        assert meta(engine, ask(engine, "anew", [*FIRST, 5]))["cached_tokens"] == 0


def test_the_next_turn_of_a_chat_finds_what_was_said_in_its_own_namespace_alone(folder: Path) -> None:
    # document: O-26
    with real_engine(folder) as engine:
        first = ask(engine, "first", FIRST, 12)
        meta(engine, first)
        history = FIRST + first.result().json()["output_ids"] + [5, 6]
        again = meta(engine, ask(engine, "second", history))
        assert again["cached_tokens"] == 32  # whole pages of the 24 and the 11 that were computed
        assert meta(engine, ask(engine, "other", history, extra_key="mine"))["cached_tokens"] == 0


def test_without_a_prefix_cache_every_turn_is_computed(folder: Path) -> None:
    with real_engine(folder, reuse=False) as engine:
        for rid in ("first", "second"):
            assert meta(engine, ask(engine, rid, FIRST))["cached_tokens"] == 0
