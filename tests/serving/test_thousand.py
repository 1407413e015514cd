"""A thousand mixed requests over HTTP on a pool that holds far fewer: each answered once, every page accounted for.

Turns of chats on shared prefixes, with priorities, aborts and both time-outs; the engine proves its invariants after
every step and ends where one does not hold.
"""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests.fakes import echo_token
from tests.serving.fakes import make_ready
from tests.serving.real_engine import PATIENCE_S, RealEngine, real_engine, until

CLIENTS = 40
TURNS = 25
MAX_PROMPT = 160
MAX_TURN = 40
NUM_ROWS = 8
NUM_PAGES = 150
"""Of 4 tokens: less than a hundredth of what the requests have in all."""


@dataclass
class Told:
    """What one client was told."""

    outcomes: Counter[str] = field(default_factory=Counter)
    heard: list[tuple[list[int], list[int]]] = field(default_factory=list)
    """Prompts and what was said after them."""


def converse(engine: RealEngine, number: int) -> Told:
    """Turns of a chat on a prefix that other clients share; some are aborted, and time passes."""
    chance, told = random.Random(number), Told()
    opening = [3 + number % 4] * 24
    history = list(opening)
    with httpx2.Client(base_url=engine.url, timeout=PATIENCE_S) as client:
        for turn in range(TURNS):
            history += [10 + chance.randrange(40) for _ in range(6)]
            rid = f"client-{number}-{turn}"
            body: dict[str, object] = {
                "rid": rid,
                "input_ids": history,
                "sampling_params": {"max_new_tokens": chance.randrange(1, MAX_TURN), "ignore_eos": True},
                "priority": chance.choice([None, -20, 0, 0, 20]),
            }
            if chance.random() < 0.15:
                engine.post("/abort_request", rid=rid)
            response = client.post("/generate", json=body)
            engine.pass_time(0.01)
            told.outcomes[outcome_of(response)] += 1
            if response.status_code == 200:
                output = response.json()["output_ids"]
                told.heard.append((list(history), output))
                history += output
            if len(history) > MAX_PROMPT - MAX_TURN:
                history = list(opening)
    return told


def right(prompt: list[int], output: list[int], vocab_size: int) -> bool:
    """Whether the model says this when it has the machine to itself."""
    sequence = prompt + output
    return all(echo_token(sequence[:end], vocab_size) == sequence[end] for end in range(len(prompt), len(sequence)))


def outcome_of(response: httpx2.Response) -> str:
    if response.status_code == 200:
        finish = response.json()["meta_info"]["finish_reason"]
        return f"{finish['type']} {finish['status_code']}" if "status_code" in finish else finish["type"]
    assert (response.status_code, "retry-after" in response.headers) == (503, True), response.text
    return response.json()["error"]["code"]


def test_a_thousand_mixed_requests_are_each_answered_once_and_leave_nothing_behind(folder: Path) -> None:
    limits = {
        "max_queued": CLIENTS // 2,
        "priority": "high_first",
        "max_preemptions": 2,
        "conservativeness": 0.1,
        "waiting_timeout_ns": 4 * 10**8,
        "running_timeout_ns": 4 * 10**8,
    }
    with real_engine(folder, num_rows=NUM_ROWS, num_pages=NUM_PAGES, **limits) as engine:
        with ThreadPoolExecutor(CLIENTS) as pool:
            talks = [pool.submit(converse, engine, number) for number in range(CLIENTS)]
            until(lambda: len(engine.link.sent) >= CLIENTS)  # all at once, so that there is a crowd
            engine.gate.open()
            tales = [talk.result() for talk in talks]
        outcomes = sum((tale.outcomes for tale in tales), Counter())
        assert outcomes.total() == CLIENTS * TURNS == len(engine.watch.rids) == len(engine.link.ended)
        assert set(engine.link.ended.values()) == {1}
        assert set(outcomes) == {"length", "abort", "abort 503", "queue_full", "displaced", "waiting_timeout"}
        flushed = engine.post("/flush_cache").result(PATIENCE_S)
        assert flushed.json()["success"] is True, flushed.text
        state = engine.pool.submit(lambda: httpx2.get(f"{engine.url}/server_info")).result().json()
        [after] = state["internal_states"]
        assert (after["num_running"], after["num_waiting"], after["free_slots"]) == (0, 0, NUM_ROWS)
        assert after["available_tokens"] == after["total_tokens"]
        stats = engine.watch.stats
        assert stats is not None
        assert stats.finished == outcomes["length"]
        assert stats.running_timeouts == outcomes["abort 503"]
        assert stats.aborted == outcomes["abort"] + outcomes["abort 503"]
        assert stats.rejected == sum(outcomes[code] for code in ("queue_full", "displaced", "waiting_timeout"))
        assert min(stats.preemptions, stats.evicted_tokens, stats.cached_tokens) > 0
        assert not any(stats.leaks.values())
        said = sum(len(prompt) + len(output) for tale in tales for prompt, output in tale.heard)
        assert said > 10 * stats.tokens_total, "the pool held more than a tenth"
        vocab_size = make_ready(folder).vocab_size
        assert all(right(prompt, output, vocab_size) for tale in tales for prompt, output in tale.heard)
