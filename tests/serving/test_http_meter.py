"""What the collector is told of HTTP exchanges, by a real application."""

import asyncio

import httpx2
import msgspec
import pytest

from serving.app import build_app
from serving.collector_wire import HttpStats
from serving.engine_client import EngineClient
from serving.http_meter import UNKNOWN, HttpMeter
from tests.serving.fakes import FakeCollector, FakeEngine, Sink, make_config


def told(method: str, path: str, **serving: object) -> tuple[int, list[HttpStats]]:
    """Status of a request, and what was reported of it."""
    seen: list[HttpStats] = []
    client = EngineClient([FakeEngine(lambda request: [1])], frontend=0, stats=Sink())
    app = build_app(make_config(**serving), client, FakeCollector(), http=seen.append)

    async def go() -> int:
        transport = httpx2.ASGITransport(app=app, client=("127.0.0.1", 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as caller:
            return (await caller.request(method, path)).status_code

    return asyncio.run(go()), seen


@pytest.mark.parametrize(
    ("method", "path", "endpoint"),
    [
        ("GET", "/livez", "/livez"),
        ("POST", "/abort_request", "/abort_request"),
        ("GET", "/generate", "/generate"),
        ("GET", "/explain/some/id?x=1", "/explain/{rid:path}"),
        ("GET", "/no/such/route", UNKNOWN),
        ("HEAD", "/livez", "/livez"),
        ("BREW", "/livez", "/livez"),
    ],
)
def test_an_exchange_is_told_when_it_begins_and_when_it_ends_by_the_route_as_declared(
    method: str, path: str, endpoint: str
) -> None:
    status, (begun, ended) = told(method, path)
    shown = method if method != "BREW" else UNKNOWN
    assert begun == HttpStats(endpoint, shown)
    assert (ended.endpoint, ended.method, ended.status) == (endpoint, shown, status)
    assert ended.seconds >= 0


def test_what_the_guard_refuses_is_counted_too() -> None:
    status, (_, ended) = told("POST", "/generate", api_key="k")
    assert (status, ended.status) == (401, 401)


def test_an_exchange_that_fails_is_a_500_and_one_that_is_left_is_a_499() -> None:
    for failure, status in ((RuntimeError("bug"), 500), (asyncio.CancelledError(), 499)):
        seen: list[HttpStats] = []

        async def app(scope, receive, send, failure=failure) -> None:
            raise failure

        meter = HttpMeter(app, [], seen.append)
        with pytest.raises(type(failure)):
            asyncio.run(meter({"type": "http", "path": "/", "method": "GET"}, None, None))  # pyright: ignore[reportArgumentType]
        assert seen[-1].status == status


def test_without_metrics_the_page_says_that_they_are_off() -> None:
    client = EngineClient([FakeEngine(lambda request: [1])], frontend=0, stats=Sink())
    config = make_config()
    off = msgspec.structs.replace(config, observe=msgspec.structs.replace(config.observe, metrics=False))

    async def go() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=build_app(off, client, FakeCollector()))
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as caller:
            return await caller.get("/metrics")

    reply = asyncio.run(go())
    assert reply.status_code == 404
    assert "observe.metrics" in reply.json()["error"]["message"]
