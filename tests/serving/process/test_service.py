"""The life of the whole service: several real processes, with a stand-in for the engine."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.serving.process.service import WAIT_S, Service, body, serving


def events(service: Service, prompt: list[int], max_new_tokens: int) -> Iterator[str]:
    """The data of each event of one stream."""
    with (
        # without TLS, whose certificates take 40 ms to read
        httpx2.Client(base_url=service.url, timeout=WAIT_S, verify=False) as client,
        client.stream("POST", "/generate", json=body(prompt, max_new_tokens, stream=True)) as response,
    ):
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield line.removeprefix("data: ")


def metric(text: str, name: str) -> float:
    """The sum of a metric's samples."""
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))
    )


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be collected by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    """Pids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pids: list[int]) -> bool:
    """Whether all of them end within the time limit."""
    deadline = time.monotonic() + WAIT_S
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_livez_answers_before_the_engine_is_ready_and_readyz_only_then(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        service.wait_for("/livez", 200)
        assert service.status("/readyz") == 503
        assert service.status("/health") == 503
        early = service.generate([65], 1)
        assert early.status_code == 503
        assert int(early.headers["retry-after"]) >= 1
        service.wait_for("/readyz", 200)
        assert service.status("/health") == 200
        assert service.generate([65, 66, 67], 6).json()["output_ids"] == [65, 66, 67, 65, 66, 67]


def test_a_killed_engine_ends_streams_with_an_error_and_the_launcher_says_why(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        service.wait_for("/readyz", 200)
        seen: list[str] = []
        for event in events(service, [65], 1_000):
            seen.append(event)
            if len(seen) == 3:
                os.kill(service.engine_pid, signal.SIGKILL)
        assert len(seen) >= 4
        assert seen[-1] == "[DONE]"
        assert "error" in json.loads(seen[-2])
        assert service.status("/health") == 503
        assert service.wait() == 1
        assert "error: the engine process was killed by SIGKILL" in service.said


def test_a_killed_frontend_takes_the_service_down(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        service.wait_for("/readyz", 200)
        pids = children(service.process.pid)
        [frontend] = [pid for pid in pids if pid != service.engine_pid]
        os.kill(frontend, signal.SIGKILL)
        assert service.wait() == 1
        assert "frontend 0 process was killed by SIGKILL" in service.said
        assert gone(pids)


def test_an_engine_that_cannot_start_gives_its_reason_and_its_exit_code(tmp_path: Path) -> None:
    with serving(tmp_path, fail="weights.gguf is truncated") as service:
        assert service.wait() == 3
        assert "before it was ready: weights.gguf is truncated" in service.said


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(tmp_path, port=port) as service:
            assert service.wait() == 2
            assert str(port) in service.said
            assert "--port" in service.said
            assert not (service.folder / "engine.pid").exists()


def test_sigterm_lets_twenty_streams_finish_and_refuses_new_ones_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as service, ThreadPoolExecutor(20) as threads:
        service.wait_for("/readyz", 200)
        streams = [events(service, [65, 66], 400) for _ in range(20)]
        first = list(threads.map(next, streams))
        assert len(first) == 20
        service.signal(signal.SIGTERM)
        service.wait_for("/readyz", 503)
        refused = service.generate([65], 1)
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert service.status("/livez") == 200
        for rest in threads.map(list, streams):
            assert rest[-1] == "[DONE]"
            assert json.loads(rest[-2])["meta_info"]["completion_tokens"] == 400
        assert service.wait() == 0


def test_what_outlives_the_drain_limit_is_ended_and_told_so(tmp_path: Path) -> None:
    with serving(tmp_path, "serving.drain_timeout_s=0.5") as service:
        service.wait_for("/readyz", 200)
        stream = events(service, [65], 1_000)
        next(stream)
        service.signal(signal.SIGTERM)
        rest = list(stream)
        assert rest[-1] == "[DONE]"
        assert service.wait() == 0


def test_a_second_signal_aborts(tmp_path: Path) -> None:
    with serving(tmp_path, "serving.drain_timeout_s=600") as service:
        service.wait_for("/readyz", 200)
        stream = events(service, [65], 1_000)
        next(stream)
        started = time.monotonic()
        service.signal(signal.SIGINT)
        service.wait_for("/readyz", 503)
        service.signal(signal.SIGINT)
        list(stream)
        assert service.wait() == 0
        assert time.monotonic() - started < WAIT_S


def test_no_process_outlives_a_killed_launcher(tmp_path: Path) -> None:
    with serving(tmp_path, "serving.workers=2") as service:
        service.wait_for("/readyz", 200)
        pids = children(service.process.pid)
        assert len(pids) == 3
        service.process.kill()
        assert gone(pids)


def test_with_three_frontends_and_300_requests_every_counter_is_the_truth(tmp_path: Path) -> None:
    # document: M-7
    with serving(tmp_path, "serving.workers=3") as service, ThreadPoolExecutor(12) as threads:
        service.wait_for("/readyz", 200)
        sizes = [(1 + number % 7, 1 + number % 5) for number in range(300)]
        answers = threads.map(lambda size: service.generate([65] * size[0], size[1]).status_code, sizes)
        seen = [metric(service.client.get("/metrics").text, "radjax_generation_tokens_total") for _ in range(50)]
        assert set(answers) == {200}
        assert seen == sorted(seen)
        truth = {
            "radjax_num_requests_total": 300.0,
            "radjax_prompt_tokens_total": float(sum(prompt for prompt, _ in sizes)),
            "radjax_generation_tokens_total": float(sum(output for _, output in sizes)),
            "radjax_e2e_request_latency_seconds_count": 300.0,
            "radjax_num_aborted_requests_total": 0.0,
            "radjax_num_running_reqs": 0.0,
        }
        deadline = time.monotonic() + WAIT_S
        found: dict[str, float] = {}
        while found != truth and time.monotonic() < deadline:
            text = service.client.get("/metrics").text
            found = {name: metric(text, name) for name in truth}
        assert found == truth


def test_a_reader_that_stops_reading_is_cut_off_and_costs_no_memory(tmp_path: Path) -> None:
    with serving(tmp_path, "serving.stall_timeout_s=1", "serving.keep_alive_s=0", pace="0.0005") as service:
        service.wait_for("/readyz", 200)
        pids = children(service.process.pid)
        [frontend] = [pid for pid in pids if pid != service.engine_pid]
        before = resident_bytes(frontend)
        asked = {"model": "echo", "prompt": [65], "max_tokens": 1_000_000, "stream": True}
        request = json.dumps(asked).encode()
        with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            stalled.sendall(f"{head}Content-Length: {len(request)}\r\n\r\n".encode() + request)
            deadline = time.monotonic() + WAIT_S
            while metric(service.client.get("/metrics").text, "radjax_num_aborted_requests_total") == 0:
                assert time.monotonic() < deadline, "the stalled reader was never cut off"
                assert resident_bytes(frontend) - before < 64 * 2**20
                time.sleep(0.2)
        assert service.status("/health") == 200


def resident_bytes(pid: int) -> int:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("path", ["/metrics", "/get_load", "/server_info"])
def test_any_frontend_answers_for_the_whole_service(tmp_path: Path, path: str) -> None:
    with serving(tmp_path, "serving.workers=2") as service:
        service.wait_for("/readyz", 200)
        assert {httpx2.get(service.url + path, timeout=WAIT_S).status_code for _ in range(6)} == {200}
