"""What known clients and routers send, as it was captured, is answered."""

import http.client
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from serving.protocol.collector import Health
from tests.serving.fakes import make_config, make_ready
from tests.serving.service import Service, serve
from tests.serving.test_streams import until

PAYLOADS = msgspec.json.decode((Path(__file__).parent / "payloads" / "clients.json").read_bytes())


@pytest.fixture(scope="module")
def service(folder: Path):
    with serve(folder, lambda request: [5, 6, 7, 8]) as running:
        yield running


def send_as_captured(port: int, sent: dict[str, Any]) -> tuple[int, Mapping[str, str], str]:
    """Over the standard library's client, which lets odd headers pass (an empty bearer token)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"content-type": "application/json", **sent.get("headers", {})}
    connection.request("POST", sent["path"], msgspec.json.encode(sent["body"]), headers)
    reply = connection.getresponse()
    try:
        return reply.status, reply.headers, reply.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_captured_request_is_answered(service: Service, name):
    sent = PAYLOADS[name]
    body = sent["body"]
    status, headers, text = send_as_captured(service.port, sent)
    assert status == 200, text
    if body.get("stream"):
        events = [line for line in text.split("\n\n") if line]
        assert events[-1] == "data: [DONE]"
        assert "error" not in text
        if body.get("stream_options"):
            last = msgspec.json.decode(events[-2][6:])
            assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 4)
    else:
        assert "error" not in msgspec.json.decode(text)
    if "x-request-id" in sent.get("headers", {}):
        assert headers["x-request-id"] == sent["headers"]["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", "/metrics"),
        ("GET", "/metrics"),
        ("GET", "/health"),
        ("GET", "/health_generate"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/v1/models"),
        ("GET", "/server_info"),
        ("GET", "/get_server_info"),
        ("GET", "/model_info"),
        ("GET", "/get_model_info"),
        ("GET", "/get_load"),
        ("GET", "/v1/loads"),
        ("POST", "/flush_cache"),
        ("GET", "/reset_prefix_cache"),
    ],
)
def test_what_clients_and_routers_probe_is_there(service, method, path):
    assert httpx2.request(method, f"{service.url}{path}").status_code == 200


def test_router_probes_find_the_figures_they_read(service):
    load = httpx2.get(f"{service.url}/get_load").json()
    assert sum(each["num_tokens"] for each in load) == 640
    assert httpx2.get(f"{service.url}/v1/loads").json()["loads"] == load
    info = httpx2.get(f"{service.url}/server_info").json()
    assert (info["served_model_name"], info["tp_size"], info["max_running_requests"]) == ("tiny", 1, 8)
    assert info["internal_states"] == [{"running": 0}]
    model = httpx2.get(f"{service.url}/model_info").json()
    assert model["is_generation"] is True
    assert Path(model["tokenizer_path"]).is_dir()


def test_server_info_tells_no_keys(folder):
    config = make_config(api_key="secret-one", admin_key="secret-two")
    with serve(folder, lambda request: [5], config=config) as service:
        reply = httpx2.get(f"{service.url}/server_info", headers={"authorization": "Bearer secret-one"})
        assert reply.status_code == 200
        assert "secret" not in reply.text


def test_a_busy_cache_is_not_flushed(folder):
    with serve(folder, lambda request: [5]) as service:
        service.engine.idle = False
        assert httpx2.post(f"{service.url}/flush_cache").status_code == 400


def test_before_the_engine_is_ready_all_but_generating_is_answered(folder):
    with serve(folder, lambda request: [5], ready=False) as service:
        loading = Health(state="starting", stage="loading weights", done=3, total=9, retry_after_s=7)
        service.collector.state = loading
        assert httpx2.get(f"{service.url}/livez").status_code == 200
        for path in ("/readyz", "/health"):
            reply = httpx2.get(f"{service.url}{path}")
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "7")
            assert (reply.json()["stage"], reply.json()["done"]) == ("loading weights", 3)
        early = httpx2.post(f"{service.url}/v1/completions", json={"prompt": "x"})
        assert (early.status_code, early.headers["retry-after"]) == (503, "7")
        assert "loading weights" in early.json()["error"]["message"]
        service.collector.state = Health(state="ready")
        service.on_loop(service.engine.say, make_ready(folder))
        until(lambda: httpx2.get(f"{service.url}/readyz").status_code == 200, "never ready")
        assert httpx2.post(f"{service.url}/v1/completions", json={"prompt": "x"}).status_code == 200


def test_a_stuck_service_is_unhealthy_but_alive(folder):
    with serve(folder, lambda request: [5]) as service:
        service.collector.state = Health(state="stuck", reason="no step for 60 s")
        assert httpx2.get(f"{service.url}/health").json()["reason"] == "no step for 60 s"
        assert httpx2.get(f"{service.url}/health").status_code == 503
        assert httpx2.get(f"{service.url}/livez").status_code == 200
