"""Clients that leave, stall or wait; engines that die."""

import socket
import time
from collections.abc import Callable

import httpx2
import msgspec
import openai
import pytest

from scheduler.commands import Abort, Generate
from tests.serving.fakes import make_config
from tests.serving.service import Service, serve

LONG = {"prompt": "x", "max_tokens": 500, "ignore_eos": True}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def all_ended(service: Service) -> bool:
    return service.client.num_open == 0


def test_a_client_that_leaves_before_the_answer_is_whole_is_aborted(folder):
    with serve(folder, lambda request: [5] * 500, pace_s=0.05) as service:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{service.url}/v1/completions", json=LONG, timeout=0.3)
        until(lambda: service.engine.count(Abort) == 1 and all_ended(service), "the request was not aborted")
        assert [stats.outcome for stats in service.sink.seen] == ["abort"]


def test_every_choice_of_a_client_that_leaves_is_aborted(folder):
    with serve(folder, lambda request: [5] * 500, pace_s=0.05) as service:
        with httpx2.stream("POST", f"{service.url}/v1/completions", json=LONG | {"stream": True, "n": 4}) as reply:
            next(reply.iter_lines())
        until(lambda: service.engine.count(Abort) == 4 and all_ended(service), "a choice was not aborted")


def test_a_reader_that_takes_nothing_is_cut_off(folder):
    config = make_config(stall_timeout_s=0.3)
    with serve(folder, lambda request: [5] * 500, pace_s=0.0005, config=config, send_buffer=4096) as service:
        body = msgspec.json.encode({"text": "x", "sampling_params": {"max_new_tokens": 500}, "stream": True})
        head = f"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", service.port))
        stalled.sendall(head.encode() + body)
        until(lambda: service.engine.count(Generate) == 1, "the request did not arrive")
        until(lambda: all_ended(service), "the stalled request goes on")
        time.sleep(0.5)
        stalled.settimeout(5)
        taken = b""
        while part := stalled.recv(65536):
            taken += part
        assert b"[DONE]" not in taken
        stalled.close()


def test_an_idle_stream_is_kept_alive_by_comments(folder):
    with (
        serve(folder, lambda request: [5, 6], pace_s=0.3, config=make_config(keep_alive_s=0.1)) as service,
        httpx2.stream("POST", f"{service.url}/v1/completions", json=LONG | {"stream": True}) as reply,
    ):
        lines = [line for line in reply.iter_lines() if line]
    assert lines.count(": keep-alive") >= 4
    assert lines[-1] == "data: [DONE]"
    assert sum(line.startswith("data: {") for line in lines) >= 2


def test_a_dead_engine_ends_streams_with_an_error_and_health_turns_503(folder):
    with serve(folder, lambda request: [5] * 500, pace_s=0.05) as service:
        client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="x", max_retries=0)
        stream = client.completions.create(model="tiny", prompt="x", max_tokens=500, stream=True)
        next(stream)
        service.on_loop(service.engine.die)
        with pytest.raises(openai.APIError, match="engine stopped"):
            list(stream)
        client.close()
        assert httpx2.get(f"{service.url}/health").status_code == 503
        assert httpx2.get(f"{service.url}/livez").status_code == 200
        late = httpx2.post(f"{service.url}/v1/completions", json=LONG)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "engine_dead")
        assert [stats.outcome for stats in service.sink.seen] == ["error"]


def test_draining_refuses_new_requests_and_finishes_old_ones(folder):
    with (
        serve(folder, lambda request: [5] * 20, pace_s=0.05) as service,
        httpx2.stream("POST", f"{service.url}/v1/completions", json=LONG | {"stream": True}) as reply,
    ):
        lines = reply.iter_lines()
        next(lines)
        service.on_loop(service.client.drain)
        until(lambda: service.client.draining, "drain did not begin")
        assert httpx2.get(f"{service.url}/readyz").status_code == 503
        late = httpx2.post(f"{service.url}/v1/completions", json=LONG)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
        assert int(late.headers["retry-after"]) >= 1
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_two_hundred_requests_leave_nothing_behind(folder):
    """Of different lengths, some with stop strings, some with clients that leave."""
    with serve(folder, lambda request: [5 + i % 90 for i in range(request.params.max_new_tokens)]) as service:
        with httpx2.Client(base_url=service.url) as client:
            for i in range(200):
                body = {"prompt": [5 + i % 50], "max_tokens": 1 + i % 40, "stream": bool(i % 2), "stop": ["&", "*"]}
                if i % 5:
                    assert client.post("/v1/completions", json=body).status_code == 200
                else:
                    with client.stream("POST", "/v1/completions", json=body) as reply:
                        next(reply.iter_lines(), None)
        until(lambda: all_ended(service), "requests remain")
        assert len(service.sink.seen) == service.engine.count(Generate) == 200
