"""Several engines behind one address: real processes, with a stand-in for each engine."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event

import httpx2
import pytest

from tests.serving.process import service as services
from tests.serving.process.service import WAIT_S, Service, body

TWO = ("parallel.replicas=2",)
serving = partial(services.serving, load="0.02")
EACH = (*TWO, "parallel.placement=round_robin")


def until(holds: Callable[[], object], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def series(service: Service, name: str) -> dict[str, float]:
    """A metric's value by ``dp_rank``."""
    found: dict[str, float] = {}
    for line in service.client.get("/metrics").text.splitlines():
        if line.startswith(f"{name}{{"):
            found[line.partition('dp_rank="')[2].partition('"')[0]] = float(line.rpartition(" ")[2])
    return found


def outcome(service: Service, prompt: list[int], tokens: int) -> str:
    """What became of one stream: ``done``, or the code of its error."""
    with (
        # without TLS, whose certificates take 40 ms to read
        httpx2.Client(base_url=service.url, timeout=WAIT_S, verify=False) as client,
        client.stream("POST", "/generate", json=body(prompt, tokens, stream=True)) as response,
    ):
        if response.status_code != 200:
            return json.loads(response.read())["error"]["code"]
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    last = json.loads(events[-2])
    return last["error"]["code"] if "error" in last else "done"


def replicas(service: Service) -> list[dict[str, object]]:
    """What ``/health?verbose`` says of each."""
    return service.client.get("/health?verbose=true").json()["replicas"]


def states(service: Service) -> list[object]:
    return [replica["state"] for replica in replicas(service)]


def num_open(service: Service) -> int:
    """Requests that the frontend has sent and that have no terminal answer."""
    return service.client.get("/health?verbose=true").json()["frontend_open_requests"]


def test_two_engines_serve_behind_one_address_and_share_the_work(tmp_path: Path) -> None:
    # document: O-4, O-29, M-2
    with serving(tmp_path, *EACH, "serving.workers=2") as service, ThreadPoolExecutor(8) as threads:
        service.wait_for("/readyz", 200)
        assert states(service) == ["ready", "ready"]
        answers = threads.map(lambda number: service.generate([65 + number], 5), range(40))
        assert [answer.json()["output_ids"] for answer in answers] == [[65 + number] * 5 for number in range(40)]
        until(lambda: sum(series(service, "radjax_step_tokens_total").values()) >= 160, "steps were not reported")
        shares = series(service, "radjax_step_tokens_total")
        assert set(shares) == {"0", "1"}
        assert min(shares.values()) >= 0.4 * sum(shares.values())
        assert "replicas" in service.said
        loads = service.client.get("/get_load").json()
        assert [load["dp_rank"] for load in loads] == [0, 1]
        assert service.client.get("/v1/loads").json()["loads"] == service.client.get("/get_load").json()
        service.signal(signal.SIGTERM)
        assert service.wait() == 0


def test_loads_and_gauges_are_of_each_replica(tmp_path: Path) -> None:
    # document: O-29
    with serving(tmp_path, *EACH, slots="1") as service, ThreadPoolExecutor(8) as threads:
        service.wait_for("/readyz", 200)
        running = [threads.submit(service.generate, [65], 400) for _ in range(6)]

        def told() -> bool:
            loads = service.client.get("/get_load").json()
            return [(load["num_running_reqs"], load["num_waiting_reqs"]) for load in loads] == [(1, 2), (1, 2)]

        until(told, "the loads were never those of three requests each")
        assert all(load["token_usage"] > 0 for load in service.client.get("/v1/loads").json()["loads"])
        assert series(service, "radjax_num_queue_reqs") == {"0": 2, "1": 2}
        service.client.post("/abort_request", json={"abort_all": True})
        assert {one.result().json()["meta_info"]["finish_reason"]["type"] for one in running} == {"abort"}


@pytest.mark.parametrize(
    ("method", "path", "sent", "command"),
    [
        ("POST", "/flush_cache", None, "FlushCache"),
        ("POST", "/pause_generation", {}, "PauseGeneration"),
        ("POST", "/continue_generation", None, "ContinueGeneration"),
        ("POST", "/start_profile", {"output_dir": "/traces"}, "StartProfile"),
        ("POST", "/stop_profile", None, "StopProfile"),
        ("POST", "/freeze_gc", None, "FreezeGC"),
        ("GET", "/debug/state", None, "DumpState"),
        ("GET", "/server_info", None, "GetState"),
        ("DELETE", "/hicache/storage-backend", None, "DetachStorage"),
    ],
)
def test_a_control_request_reaches_every_engine_and_is_answered_once(
    two: Service, method: str, path: str, sent: dict[str, str] | None, command: str
) -> None:
    before = [two.heard(replica).count(command) for replica in range(2)]
    answer = two.client.request(method, path, json=sent)
    assert answer.status_code == 200, answer.text
    assert [two.heard(replica).count(command) for replica in range(2)] == [count + 1 for count in before]
    body = answer.json()
    assert body.get("message", "fake") == "fake"
    if path == "/start_profile":
        assert body["output_dir"] == "/traces/dp0; /traces/dp1"
    if path == "/debug/state":
        assert len(body["engines"]) == 2
    if path == "/server_info":
        assert (body["dp_size"], len(body["internal_states"])) == (2, 2)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory):
    with serving(tmp_path_factory.mktemp("two"), *EACH) as service:
        service.wait_for("/readyz", 200)
        yield service


def test_an_abort_finds_its_request_wherever_it_runs(two: Service) -> None:
    with ThreadPoolExecutor(4) as threads:
        rids = [f"mine-{number}" for number in range(4)]
        asked = [{**body([65], 100_000), "rid": rid} for rid in rids]
        waiting = [threads.submit(two.client.post, "/generate", json=one) for one in asked]
        until(lambda: sum(load["num_reqs"] for load in two.client.get("/get_load").json()) == 4, "they do not run")
        for rid, answer in zip(rids, waiting, strict=True):
            assert not answer.done()
            assert two.client.post("/abort_request", json={"rid": rid}).status_code == 200
            assert answer.result().json()["meta_info"]["finish_reason"]["type"] == "abort"


def test_a_replica_that_stands_still_does_not_hold_up_the_other(tmp_path: Path) -> None:
    with serving(tmp_path, *TWO, "parallel.placement=shortest_queue") as service, ThreadPoolExecutor(8) as threads:
        service.wait_for("/readyz", 200)
        os.kill(service.pid_of(1), signal.SIGSTOP)
        try:
            some = [threads.submit(outcome, service, [65], 20) for _ in range(8)]
            until(lambda: sum(one.done() for one in some) >= 4, "nothing was answered")
            begun = time.monotonic()
            done = [service.generate([66], 20).status_code for _ in range(10)]
            assert set(done) == {200}
            assert time.monotonic() - begun < 10
        finally:
            os.kill(service.pid_of(1), signal.SIGCONT)
        assert {one.result() for one in some} == {"done"}


@contextmanager
def eight_clients(service: Service, threads: ThreadPoolExecutor) -> Iterator[list[str]]:
    """Streams that follow one another until the block ends, however it does; what became of each."""
    over = Event()
    outcomes: list[str] = []

    def client() -> None:
        while not over.is_set():
            outcomes.append(outcome(service, [65], 50))

    clients = [threads.submit(client) for _ in range(8)]
    try:
        yield outcomes
    finally:
        over.set()
    for one in clients:
        one.result(WAIT_S)


def test_under_load_a_killed_replica_comes_back_no_client_hangs_and_no_counter_falls(tmp_path: Path) -> None:
    with serving(tmp_path, *EACH, "serving.workers=2") as service, ThreadPoolExecutor(8) as threads:
        service.wait_for("/readyz", 200)
        until(lambda: all(httpx2.get(f"{service.url}/readyz").status_code == 200 for _ in range(20)), "not all ready")
        with eight_clients(service, threads) as outcomes:
            until(lambda: len(outcomes) >= 16, "nothing was answered")
            before, gone = series(service, "radjax_step_tokens_total"), service.pid_of(1)
            killed = time.monotonic()
            os.kill(gone, signal.SIGKILL)
            until(lambda: states(service) != ["ready", "ready"], "the death was not noticed")
            assert service.status("/health") == service.status("/readyz") == 200
            assert series(service, "radjax_serving")["0"] == 1
            answered = len(outcomes)
            until(lambda: len(outcomes) >= answered + 8, "the other did not go on")
            until(lambda: states(service) == ["ready", "ready"], "it did not come back")
            assert time.monotonic() - killed < 30
            assert service.pid_of(1) != gone
            assert replicas(service)[1]["restarts"] == 1
            answered = len(outcomes)
            until(lambda: len(outcomes) >= answered + 16, "nothing was answered by two again")
        assert set(outcomes) <= {"done", "engine_dead"}
        assert outcomes.count("engine_dead") <= 8
        after = series(service, "radjax_step_tokens_total")
        assert all(after[rank] > before[rank] for rank in ("0", "1"))
        assert "engine 1 process was killed by SIGKILL" in service.said
        assert "engine 1 serves again" in service.said


def test_what_a_dead_replica_had_not_begun_to_answer_goes_to_another(tmp_path: Path) -> None:
    with serving(tmp_path, *EACH, slots="1", pace="0.02") as service, ThreadPoolExecutor(8) as threads:
        service.wait_for("/readyz", 200)
        sent = [threads.submit(outcome, service, [65], 40) for _ in range(8)]
        waiting = [{"num_running_reqs": 1, "num_waiting_reqs": 3}] * 2
        until(
            lambda: (
                [{name: load[name] for name in waiting[0]} for load in service.client.get("/get_load").json()]
                == waiting
            ),
            "they never ran one and waited three",
        )
        os.kill(service.pid_of(1), signal.SIGKILL)
        found = [one.result(WAIT_S) for one in sent]
        assert sorted(found) == ["done"] * 7 + ["engine_dead"]


def test_waiting_requests_leave_a_long_queue_for_a_replica_that_has_none(tmp_path: Path) -> None:
    # document: O-29
    settings = (*EACH, "parallel.placement_slack=2")
    with serving(tmp_path, *settings, slots="1", pace="0.01") as service, ThreadPoolExecutor(16) as threads:
        service.wait_for("/readyz", 200)
        long: list[Future[str]] = []
        for _ in range(6):  # in turns with short ones, so that at first all are sent to the same
            long.append(threads.submit(outcome, service, [65], 100))
            until(lambda: num_open(service) >= sum(not one.done() for one in long), "a request was not sent")
            assert outcome(service, [66], 1) == "done"
        assert {one.result() for one in long} == {"done"}
        assert service.heard(0) + service.heard(1) != []
        assert set(service.heard(0) + service.heard(1)) == {"Recall"}
        assert min(series(service, "radjax_step_tokens_total").values()) > 50


def test_a_replica_that_dies_again_and_again_ends_the_service_with_the_reason(tmp_path: Path) -> None:
    with serving(tmp_path, *TWO) as service:
        service.wait_for("/readyz", 200)
        for _ in range(3):
            gone = service.pid_of(0)
            os.kill(gone, signal.SIGKILL)
            until(lambda gone=gone: service.pid_of(0) != gone and states(service) == ["ready", "ready"], "no return")
        os.kill(service.pid_of(0), signal.SIGKILL)
        assert service.wait() == 1
        assert "error: the engine 0 process was killed by SIGKILL" in service.said
        assert "although it was started again 3 times in ten minutes" in service.said


def test_a_replica_that_cannot_start_ends_the_service_before_it_is_ready(tmp_path: Path) -> None:
    with serving(tmp_path, *TWO, fail="weights.gguf is truncated") as service:
        assert service.wait() == 3
        assert "engine 0 process exited with code 3 before it was ready: weights.gguf is truncated" in service.said


def test_a_restarted_replica_of_a_paused_service_is_paused_too(tmp_path: Path) -> None:
    with serving(tmp_path, *EACH) as service, ThreadPoolExecutor(2) as threads:
        service.wait_for("/readyz", 200)
        assert service.client.post("/pause_generation", json={"mode": "in_place"}).status_code == 200
        os.kill(service.pid_of(1), signal.SIGKILL)
        until(lambda: service.heard(1).count("PauseGeneration") == 2, "the new one was not paused")
        waiting = [threads.submit(service.generate, [65], 3) for _ in range(2)]
        time.sleep(0.5)
        assert not any(one.done() for one in waiting)
        assert service.client.post("/continue_generation").status_code == 200
        assert {one.result(WAIT_S).status_code for one in waiting} == {200}
