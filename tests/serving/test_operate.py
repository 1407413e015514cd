"""Pause, continue, state and garbage collection over HTTP, against the real scheduler."""

import json
import logging
from pathlib import Path

import httpx2
import pytest
from msgspec import structs

from serving.guard import ADMIN_PATHS
from serving.vitals import STUCK_AFTER_S, Vitals
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


def test_the_state_says_what_the_documents_name_and_garbage_is_frozen_everywhere(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with real_engine(folder) as engine, caplog.at_level(logging.INFO, "scheduler.operations"):
        state = httpx2.get(f"{engine.url}/debug/state").json()["engines"][0]
        assert state.keys() >= {"timestamp", "forward_count", "running_batch", "waiting_queue", "memory_stats"}
        assert state["running_batch"].keys() >= {"size", "forward_mode", "rids"}
        ranks = {"tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "dp_rank": None}
        assert state["parallel_config"] == ranks
        [line] = [record.getMessage() for record in caplog.records if record.name == "scheduler.operations"]
        assert json.loads(line.removeprefix("scheduler state: "))["parallel_config"] == ranks
        assert state["memory_stats"].keys() >= {"token_usage", "available_tokens", "req_pool_usage"}
        assert "collected no more" in httpx2.post(f"{engine.url}/freeze_gc", timeout=60).json()["message"]
        health = httpx2.get(f"{engine.url}/health", params={"verbose": "1"}).json()
        assert health["status"] == "ready"
        assert health["loads"]


def test_settings_are_changed_while_the_engine_runs_and_shown_with_its_state(folder: Path) -> None:
    # document: O-41
    with real_engine(folder, 2) as engine:
        url = f"{engine.url}/set_internal_state"
        reply = httpx2.post(url, json={"server_args": {"running_timeout_s": 1.5, "max_queued_requests": 7}}).json()
        assert reply["updated"]
        assert reply["server_args"]["running_timeout_s"] == 1.5
        [state] = httpx2.get(f"{engine.url}/server_info").json()["internal_states"]
        assert state["settings"] == reply["server_args"]
        late = engine.send("/generate", "late", text="Hello you", sampling_params=PARAMS)
        engine.step_until(lambda: len(engine.watch.admitted) == 1)
        engine.pass_time(2)
        engine.step_until(late.done)
        assert late.result().json()["meta_info"]["finish_reason"]["type"] == "abort"
        engine.gate.open()
        for args, said in (({"page_size": 4}, "page_size cannot be set"), ({"max_queued_requests": 0}, "from 1 to")):
            refused = httpx2.put(url, json={"server_args": args})
            assert refused.status_code == 400
            assert said in refused.json()["error"]["message"]
        assert httpx2.post(url, json={"server_args": {"running_timeout_s": True}}).status_code == 400


def test_all_of_these_are_for_administrators() -> None:
    operations = {"/pause_generation", "/continue_generation", "/freeze_gc", "/debug/state", "/set_internal_state"}
    assert operations <= ADMIN_PATHS


def test_an_engine_that_is_paused_is_not_stuck_and_one_that_goes_on_may_be() -> None:
    def state_after(paused: bool) -> str:
        vitals = Vitals(0.0)
        vitals.ready(0, 0.0)
        vitals.step(structs.replace(step_stats(num_running=2), paused=paused), 1.0)
        vitals.check(1.0 + 2 * STUCK_AFTER_S)
        return vitals.health.state

    assert state_after(paused=True) == "ready"
    assert state_after(paused=False) == "stuck"
