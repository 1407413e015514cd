"""Who may ask what: every route with every key, and headers that try to get around it."""

import asyncio
import socket
from pathlib import Path

import httpx2
import openai
import pytest

from serving.app import build_app
from serving.engine_client import EngineClient
from serving.guard import ADMIN_PATHS, OPEN_PATHS
from tests.serving.fakes import FakeCollector, FakeEngine, Sink, make_config
from tests.serving.service import serve

KEYS = {"none": None, "user": "user-key", "admin": "admin-key", "wrong": "x"}


def app(**serving: object):
    client = EngineClient([FakeEngine(lambda request: [1])], frontend=0, stats=Sink())
    # the live page's feed then ends after its first frame
    client.drain()
    return build_app(make_config(**serving), client, FakeCollector())


def ask(app, method: str, path: str, peer: str = "127.0.0.1", headers: dict[str, str] | None = None) -> httpx2.Response:
    async def go() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=app, client=(peer, 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(go())


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}


def every_route() -> list[tuple[str, str]]:
    return [(sorted(route.methods)[-1], route.path.replace("{name:path}", "tiny")) for route in app().routes]


@pytest.mark.parametrize("who", KEYS)
@pytest.mark.parametrize(("method", "path"), every_route())
def test_every_route_is_closed_to_those_without_its_key(method, path, who):
    guarded = app(api_key="user-key", admin_key="admin-key")
    status = ask(guarded, method, path, headers=bearer(KEYS[who])).status_code
    if path in OPEN_PATHS:
        assert status not in (401, 403)
    elif path in ADMIN_PATHS:
        assert (status == 403) == (who != "admin")
    else:
        assert (status == 401) == (who in ("none", "wrong"))


@pytest.mark.parametrize("path", sorted(ADMIN_PATHS))
def test_without_an_admin_key_only_this_machine_administers(path):
    assert ask(app(), "POST", path, peer="10.0.0.1").status_code == 403
    assert ask(app(), "POST", path, peer="::1").status_code != 403
    assert ask(app(), "POST", path, headers={"x-forwarded-for": "8.8.8.8"}).status_code == 403
    assert ask(app(api_key="k"), "POST", path).status_code == 401


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/models", {"host": "service/livez?"}),
        ("//livez/../v1/models", {}),
        ("/livez/", {}),
        ("/livez%2f..%2fv1/models", {}),
        ("/V1/models", {}),
        ("/unknown", {}),
        ("/v1/models", {"authorization": "Bearer "}),
        ("/v1/models", {"authorization": "Basic user-key"}),
    ],
)
def test_no_spelling_gets_around_the_key(path, headers):
    assert ask(app(api_key="user-key"), "GET", path, headers=headers).status_code == 401


def test_an_empty_bearer_is_fine_where_no_key_is_needed():
    assert ask(app(), "GET", "/get_load", headers={"authorization": "Bearer "}).status_code == 200


def test_hosts_are_checked_when_configured():
    guarded = app(allowed_hosts=["good.example"])
    assert ask(guarded, "GET", "/livez", headers={"host": "good.example:30000"}).status_code == 200
    assert ask(guarded, "GET", "/livez", headers={"host": "evil.example"}).status_code == 400


def test_headers_have_limits_and_ids_a_form():
    assert ask(app(), "GET", "/livez", headers={"x-long": "x" * 70_000}).status_code == 431
    assert ask(app(), "GET", "/livez", headers={f"x-{i}": "1" for i in range(300)}).status_code == 431
    assert ask(app(), "GET", "/livez", headers={"x-request-id": "x" * 129}).status_code == 400
    assert ask(app(), "GET", "/livez", headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"
    assert ask(app(), "GET", "/livez").headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/start_profiles", 404, "not_found"),
        ("GET", "/generate", 405, "method_not_allowed"),
    ],
)
def test_the_routers_own_errors_have_the_common_shape(method, path, status, code):
    reply = ask(app(), method, path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_the_openai_client_sees_each_status_as_its_own_exception(folder: Path):
    with serve(folder, lambda request: [5], config=make_config(api_key="k", max_body_bytes=4096)) as service:
        made = openai.OpenAI(base_url=f"{service.url}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError) as caught:
            made.models.list()
        assert caught.value.body["type"] == "authentication_error"
        right = made.with_options(api_key="k")
        with pytest.raises(openai.APIStatusError) as large:
            right.completions.create(model="tiny", prompt="x" * 5000)
        assert (large.value.status_code, large.value.code) == (413, "request_too_large")
        with pytest.raises(openai.NotFoundError):
            right.moderations.create(input="x")
        made.close()
        right.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_a_hundred_megabytes_is_refused_before_it_is_read(folder, chunked):
    with serve(folder, lambda request: [5]) as service, socket.create_connection(("127.0.0.1", service.port)) as wire:
        size = "transfer-encoding: chunked" if chunked else "content-length: 104857600"
        wire.sendall(f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{size}\r\n\r\n".encode())
        if chunked:
            block = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
            for _ in range(33):
                wire.sendall(block)
        wire.settimeout(10)
        assert wire.recv(4096).startswith(b"HTTP/1.1 413")


def test_only_json_is_read(folder):
    with serve(folder, lambda request: [5]) as service:
        reply = httpx2.post(f"{service.url}/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_nothing_speaks_web_sockets():
    async def go() -> list[dict[str, object]]:
        sent: list[dict[str, object]] = []

        async def receive():
            return {"type": "websocket.connect"}

        async def send(message):
            sent.append(message)

        await app()({"type": "websocket", "path": "/livez", "headers": []}, receive, send)
        return sent

    assert asyncio.run(go()) == [{"type": "websocket.close", "code": 1008}]
