"""The routing key of requests, over HTTP."""

from pathlib import Path

import httpx2
import pytest

from scheduler.commands import Generate
from tests.serving.service import Service, serve

ASK = [{"role": "user", "content": "Hi"}]
BODIES = [
    ("/v1/chat/completions", {"model": "tiny", "messages": ASK, "max_tokens": 1}),
    ("/v1/completions", {"model": "tiny", "prompt": "Hi", "max_tokens": 1}),
    ("/generate", {"text": "Hi", "sampling_params": {"max_new_tokens": 1}}),
]


@pytest.fixture(scope="module")
def service(folder: Path):
    with serve(folder, lambda request: [2]) as running:
        yield running


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_a_routing_key_reaches_the_engine(service: Service, path: str, body: dict[str, object]) -> None:
    for given, expected in (({"routing_key": "team-a"}, "team-a"), ({"routing_key": ""}, None), ({}, None)):
        assert httpx2.post(f"{service.url}{path}", json={**body, **given}).status_code == 200
        sent = [command for command in service.engine.heard if isinstance(command, Generate)][-1]
        assert sent.routing_key == expected


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_a_routing_key_that_is_too_long_is_refused_by_name(
    service: Service, path: str, body: dict[str, object]
) -> None:
    reply = httpx2.post(f"{service.url}{path}", json={**body, "routing_key": "x" * 257})
    assert reply.status_code == 400
    assert "routing_key" in reply.text
