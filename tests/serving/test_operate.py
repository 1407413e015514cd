"""Pause, continue, state and garbage collection over HTTP, against the real scheduler."""

from pathlib import Path

import httpx2
import pytest
from msgspec import structs

from serving.collector import STUCK_AFTER_S, Vitals
from serving.guard import ADMIN_PATHS
from tests.serving.process.figures import step_stats
from tests.serving.real_engine import PATIENCE_S, RealEngine, real_engine

# document: M-19, O-33, P-1

PARAMS = {"max_new_tokens": 300, "ignore_eos": True}


def begin(engine: RealEngine, count: int = 2) -> list[object]:
    return [engine.send("/generate", f"r{i}", text="Hello you", sampling_params=PARAMS) for i in range(count)]


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_the_answer_to_a_pause_waits_for_what_is_in_flight_and_requests_go_on_afterwards(
    folder: Path, mode: str
) -> None:
    with real_engine(folder, 2) as engine:
        replies = begin(engine)
        engine.step_until(lambda: len(engine.watch.admitted) == 2)
        paused = engine.post("/pause_generation", mode=mode)
        engine.step_until(paused.done)
        assert paused.result().json() == {"success": True, "message": f"Generation is paused ({mode}).", "status": "ok"}
        stats = engine.watch.stats
        assert stats is not None
        assert stats.gen_throughput == 0
        assert stats.paused
        state = httpx2.get(f"{engine.url}/debug/state").json()["engines"][0]
        running = {"retract": 0, "in_place": 2}[mode]
        assert state["running_batch"]["size"] == running
        assert state["waiting_queue"]["size"] == 2 - running
        assert state["running_batch"]["in_flight"] == 0
        engine.gate.open()
        assert not any(reply.done() for reply in replies)
        assert engine.post("/continue_generation").result(PATIENCE_S).status_code == 200
        for reply in replies:
            meta = reply.result(PATIENCE_S).json()["meta_info"]
            assert meta["completion_tokens"] == 300


def test_a_pause_without_a_body_aborts(folder: Path) -> None:
    with real_engine(folder, 2) as engine:
        replies = begin(engine)
        engine.gate.open()
        assert httpx2.post(f"{engine.url}/pause_generation").json()["message"] == "Generation is paused (abort)."
        for reply in replies:
            body = reply.result(PATIENCE_S).json()
            assert body["meta_info"]["finish_reason"]["type"] in ("abort", "length")
        queued = engine.send("/generate", "later", text="Hello you", sampling_params=PARAMS)
        assert engine.post("/continue_generation").result(PATIENCE_S).status_code == 200
        assert queued.result(PATIENCE_S).json()["meta_info"]["completion_tokens"] == 300


def test_an_unknown_mode_is_refused(folder: Path) -> None:
    with real_engine(folder) as engine:
        reply = httpx2.post(f"{engine.url}/pause_generation", json={"mode": "sideways"})
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "mode"


def test_the_state_says_what_the_documents_name_and_garbage_is_frozen_everywhere(folder: Path) -> None:
    with real_engine(folder) as engine:
        state = httpx2.get(f"{engine.url}/debug/state").json()["engines"][0]
        assert state.keys() >= {"timestamp", "forward_count", "running_batch", "waiting_queue", "memory_stats"}
        assert state["running_batch"].keys() >= {"size", "forward_mode", "rids"}
        assert state["parallel_config"] == {"tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "dp_rank": None}
        assert state["memory_stats"].keys() >= {"token_usage", "available_tokens", "req_pool_usage"}
        assert "collected no more" in httpx2.post(f"{engine.url}/freeze_gc").json()["message"]
        health = httpx2.get(f"{engine.url}/health", params={"verbose": "1"}).json()
        assert health["status"] == "ready"
        assert health["loads"]


def test_all_of_these_are_for_administrators() -> None:
    assert {"/pause_generation", "/continue_generation", "/freeze_gc", "/debug/state"} <= ADMIN_PATHS


def test_an_engine_that_is_paused_is_not_stuck_and_one_that_goes_on_may_be() -> None:
    def state_after(paused: bool) -> str:
        vitals = Vitals(0.0)
        vitals.ready(0.0)
        vitals.step(structs.replace(step_stats(num_running=2), paused=paused), 1.0)
        vitals.check(1.0 + 2 * STUCK_AFTER_S)
        return vitals.health.state

    assert state_after(paused=True) == "ready"
    assert state_after(paused=False) == "stuck"
