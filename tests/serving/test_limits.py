"""Priorities, limits, time-outs and aborts as a client sees them, against the real scheduler."""

import re
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path

import httpx2
import msgspec
import pytest

from scheduler.commands import Generate
from tests.serving.real_engine import PATIENCE_S, RealEngine, real_engine
from tests.serving.service import serve

LONG = {"max_new_tokens": 300, "ignore_eos": True}
SHORT = {"max_new_tokens": 4, "ignore_eos": True}


def native(engine: RealEngine, rid: str, params: dict[str, object], **body: object) -> "Future[httpx2.Response]":
    return engine.send("/generate", rid, text="Hello you", sampling_params=params, **body)


def openai(engine: RealEngine, rid: str, max_tokens: int, **body: object) -> "Future[httpx2.Response]":
    return engine.send("/v1/completions", rid, prompt="Hello you", max_tokens=max_tokens, ignore_eos=True, **body)


def check_refused(reply: "Future[httpx2.Response]", code: str) -> None:
    """A 503 with this code, and a time to come again."""
    response = reply.result(PATIENCE_S)
    assert response.status_code == 503, response.text
    assert response.json()["error"]["code"] == code
    assert re.fullmatch(r"[1-9]\d{0,2}", response.headers["retry-after"])
    assert int(response.headers["retry-after"]) <= 120


def finish_of(reply: "Future[httpx2.Response]") -> dict[str, object]:
    response = reply.result(PATIENCE_S)
    assert response.status_code == 200, response.text
    return response.json()["meta_info"]["finish_reason"]


ENDED = {"type": "length", "length": SHORT["max_new_tokens"]}


@pytest.mark.parametrize("ask", [lambda e: native(e, "late", SHORT), lambda e: openai(e, "late", 4)])
def test_a_request_that_waits_for_too_long_is_refused_and_told_when_to_come_again(
    folder: Path, ask: Callable[[RealEngine], "Future[httpx2.Response]"]
) -> None:
    with real_engine(folder, waiting_timeout_ns=5 * 10**9) as engine:
        running = native(engine, "running", LONG)
        late = ask(engine)
        engine.pass_time(5)
        in_time = native(engine, "in-time", SHORT)
        assert not late.done()
        engine.pass_time(1)
        engine.step_until(late.done)
        check_refused(late, "waiting_timeout")
        assert engine.watch.stats is not None
        engine.gate.open()
        assert finish_of(running)["type"] == "length"
        assert finish_of(in_time) == ENDED
        assert (engine.watch.stats.waiting_timeouts, engine.watch.stats.rejected) == (1, 1)


def test_a_request_that_runs_for_too_long_ends_with_what_it_has_said(folder: Path) -> None:
    # document: O-24
    with real_engine(folder, num_rows=2, running_timeout_ns=5 * 10**9) as engine:
        slow, failed = native(engine, "slow", LONG), openai(engine, "failed", 300)
        engine.pass_time(6)
        engine.step_until(lambda: slow.done() and failed.done())
        assert finish_of(slow) == {"type": "abort", "message": "Request running timeout reached.", "status_code": 503}
        meta = slow.result().json()["meta_info"]
        assert 0 < meta["completion_tokens"] == len(slow.result().json()["output_ids"]) < LONG["max_new_tokens"]
        check_refused(failed, "running_timeout")
        assert failed.result().headers["retry-after"] == "1", "nobody waits"
        later = native(engine, "later", SHORT)
        engine.gate.open()
        assert finish_of(later) == ENDED
        assert engine.watch.stats is not None
        assert (engine.watch.stats.running_timeouts, engine.watch.stats.aborted) == (2, 2)


def test_a_stream_that_runs_for_too_long_ends_with_an_error(folder: Path) -> None:
    with real_engine(folder, running_timeout_ns=5 * 10**9) as engine:
        stream = openai(engine, "slow", 300, stream=True)
        engine.step_until(lambda: engine.watch.stats is not None and engine.watch.stats.output_tokens > 2)
        engine.pass_time(6)
        engine.step_until(stream.done)
        events = [line for line in stream.result().text.splitlines() if line]
        assert msgspec.json.decode(events[-2].removeprefix("data: "))["error"]["code"] == "running_timeout"


def test_a_full_queue_refuses_the_newcomer(folder: Path) -> None:
    with real_engine(folder, max_queued=1) as engine:
        running, waiting = native(engine, "running", LONG), native(engine, "waiting", SHORT, priority=-5)
        check_refused(native(engine, "late", SHORT, priority=5), "queue_full")
        engine.gate.open()
        assert (finish_of(running)["type"], finish_of(waiting)) == ("length", ENDED)


def test_a_queue_is_full_by_prompt_tokens_too_and_one_long_prompt_may_wait_alone(folder: Path) -> None:
    with real_engine(folder, max_queued_tokens=10) as engine:
        running = engine.send("/generate", "running", input_ids=[5, 6], sampling_params=LONG)
        waiting = engine.send("/generate", "waiting", input_ids=[7] * 20, sampling_params=SHORT)
        check_refused(engine.send("/generate", "late", input_ids=[8], sampling_params=SHORT), "queue_full")
        engine.gate.open()
        assert (finish_of(running)["type"], finish_of(waiting)) == ("length", ENDED)
        again = [engine.send("/generate", f"again-{n}", input_ids=[8], sampling_params=SHORT) for n in range(3)]
        assert [finish_of(reply) for reply in again] == [ENDED] * 3


@pytest.mark.parametrize(("direction", "urgent"), [("high_first", 7), ("low_first", -7)])
def test_a_full_queue_drops_the_least_urgent_for_a_more_urgent_newcomer(
    folder: Path, direction: str, urgent: int
) -> None:
    with real_engine(folder, max_queued=2, priority=direction, max_preemptions=0) as engine:
        running = native(engine, "running", LONG, priority=urgent)
        keeper = native(engine, "keeper", SHORT, priority=0)
        loser = native(engine, "loser", SHORT)
        newcomer = native(engine, "newcomer", SHORT, priority=urgent)
        engine.step_until(loser.done)
        check_refused(loser, "displaced")
        assert "higher priority" in loser.result().json()["error"]["message"]
        check_refused(native(engine, "equal", SHORT, priority=0), "queue_full")
        engine.gate.open()
        assert [finish_of(reply) for reply in (keeper, newcomer)] == [ENDED] * 2
        assert finish_of(running)["type"] == "length"
        assert engine.watch.stats is not None
        assert (engine.watch.stats.displaced, engine.watch.stats.rejected) == (1, 2)


@pytest.mark.parametrize(
    ("direction", "order"),
    [
        ("high_first", ["high", "low", "low-too", "none"]),
        ("low_first", ["low", "low-too", "high", "none"]),
        ("off", ["none", "low", "high", "low-too"]),
    ],
)
def test_the_more_urgent_run_first_and_of_equals_who_came_first(folder: Path, direction: str, order: list[str]) -> None:
    with real_engine(folder, priority=direction, max_preemptions=0) as engine:
        replies = [native(engine, "running", LONG), native(engine, "none", SHORT)]
        replies += [
            native(engine, name, SHORT, priority=priority)
            for name, priority in (("low", 1), ("high", 2), ("low-too", 1))
        ]
        engine.gate.open()
        assert [finish_of(reply)["type"] for reply in replies] == ["length"] * 5
        assert engine.watch.admitted == ["running", *order]


def test_a_running_request_gives_way_to_one_that_is_more_urgent_by_the_threshold_and_says_the_same(
    folder: Path,
) -> None:
    with real_engine(folder, priority="high_first", preemption_threshold=3, max_preemptions=1) as engine:
        params = {"max_new_tokens": 100, "ignore_eos": True}
        victim = native(engine, "victim", params, priority=0)
        below = native(engine, "below", SHORT, priority=3)
        urgent = native(engine, "urgent", SHORT, priority=4)
        engine.step_until(urgent.done)
        assert not victim.done()
        assert finish_of(urgent) == ENDED
        engine.step_until(below.done)
        again = native(engine, "again", SHORT, priority=2**31 - 1)
        engine.step_until(victim.done)
        assert not again.done(), "the same request gave way twice"
        engine.gate.open()
        assert finish_of(below) == finish_of(again) == ENDED
        alone = native(engine, "alone", params)
        assert victim.result().json()["output_ids"] == alone.result(PATIENCE_S).json()["output_ids"]
        assert victim.result().json()["meta_info"]["num_retractions"] == 1
        assert engine.watch.stats is not None
        assert (engine.watch.stats.preemptions, engine.watch.stats.retractions) == (1, 1)


BODIES: list[tuple[str, dict[str, object]]] = [
    ("/generate", {"text": "x"}),
    ("/v1/completions", {"prompt": "x"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
]


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_a_priority_is_a_bounded_whole_number_and_reaches_the_engine(
    folder: Path, path: str, body: dict[str, object]
) -> None:
    with serve(folder, lambda request: [2]) as service:
        for refused in (2**31, -(2**31) - 1, 1.5, "high"):
            response = httpx2.post(f"{service.url}{path}", json=body | {"priority": refused})
            assert (response.status_code, response.json()["error"]["param"]) == (400, "priority")
        for taken in (2**31 - 1, -(2**31), 0, None):
            assert httpx2.post(f"{service.url}{path}", json=body | {"priority": taken}).status_code == 200
        assert httpx2.post(f"{service.url}{path}", json=body).status_code == 200
        heard = [command.priority for command in service.engine.heard if isinstance(command, Generate)]
        assert heard == [2**31 - 1, -(2**31), 0, None, None]


def abort(engine: RealEngine, **body: object) -> None:
    reply = engine.post("/abort_request", **body)
    engine.step_until(reply.done)
    assert reply.result().json()["success"] is True


def test_an_abort_ends_the_request_with_exactly_that_id(folder: Path) -> None:
    with real_engine(folder) as engine:
        running = native(engine, "job-1", LONG)
        waiting = {rid: native(engine, rid, SHORT) for rid in ("job", "job-10", "job-1-0")}
        abort(engine, rid="job-10")
        engine.step_until(waiting["job-10"].done)
        abort(engine, rid="job")
        engine.step_until(waiting["job"].done)
        assert not running.done()
        abort(engine, rid="job-1")
        engine.step_until(running.done)
        assert [finish_of(r)["type"] for r in (running, waiting["job"], waiting["job-10"])] == ["abort"] * 3
        engine.gate.open()
        assert finish_of(waiting["job-1-0"]) == ENDED


def test_an_abort_by_the_id_of_a_batch_ends_all_its_prompts(folder: Path) -> None:
    with real_engine(folder, num_rows=2) as engine:
        batch = engine.send("/generate", "batch", text=["one", "two", "three"], sampling_params=LONG)
        other = native(engine, "other", SHORT)
        abort(engine, rid="batch")
        engine.step_until(batch.done)
        assert [each["meta_info"]["finish_reason"]["type"] for each in batch.result().json()] == ["abort"] * 3
        engine.gate.open()
        assert finish_of(other) == ENDED


def test_abort_all_ends_what_runs_and_what_waits(folder: Path) -> None:
    with real_engine(folder) as engine:
        replies = [native(engine, f"r{number}", LONG) for number in range(4)]
        abort(engine, abort_all=True)
        engine.step_until(lambda: all(reply.done() for reply in replies))
        assert [finish_of(reply)["type"] for reply in replies] == ["abort"] * 4
        assert engine.watch.stats is not None


def test_an_abort_of_an_unknown_id_or_of_none_ends_nothing(folder: Path) -> None:
    with real_engine(folder) as engine:
        running = native(engine, "running", SHORT)
        abort(engine, rid="nobody")
        refused = engine.post("/abort_request", rid="").result(PATIENCE_S)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "rid")
        engine.gate.open()
        assert wait([running], PATIENCE_S).done
        assert finish_of(running) == ENDED
