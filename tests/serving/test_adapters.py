"""Adapters over HTTP: each reaches the engine by its name, and is refused by its name while none is loaded."""

from pathlib import Path

import httpx2
import pytest
from msgspec import structs

from configs.schema import Model
from scheduler.commands import Generate
from tests.serving.fakes import make_config
from tests.serving.real_engine import real_engine
from tests.serving.service import Service, serve

# document: O-15, O-38

CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
COMPLETION = ("/v1/completions", {"prompt": "Hi", "max_tokens": 1})
NATIVE = ("/generate", {"text": "Hi", "sampling_params": {"max_new_tokens": 1}})


def asked(service: Service, path: str, body: dict[str, object]) -> list[str | None]:
    """The adapters of the requests that a call led to."""
    before = len(service.engine.heard)
    assert httpx2.post(f"{service.url}{path}", json=body).status_code == 200
    return [command.adapter for command in service.engine.heard[before:] if isinstance(command, Generate)]


@pytest.fixture(scope="module")
def service(folder: Path):
    config = structs.replace(make_config(), model=Model(source="tiny-folder", aliases=("a:b",)))
    with serve(folder, lambda request: [2], config=config) as running:
        yield running


@pytest.mark.parametrize(("path", "body"), [CHAT, COMPLETION])
def test_a_model_may_be_followed_by_an_adapter_unless_all_of_it_is_a_models_name(
    service: Service, path: str, body: dict[str, object]
) -> None:
    for model, given, expected in (
        ("tiny", None, None),
        ("tiny:x", None, "x"),
        ("tiny:x", "y", "x"),
        ("a:b", None, None),
        ("a:b:x", None, "x"),
        ("tiny", "y", "y"),
    ):
        assert asked(service, path, {**body, "model": model, "lora_path": given}) == [expected]
    for unknown in ("other:x", "tiny:", "a:c"):
        assert httpx2.post(f"{service.url}{path}", json={**body, "model": unknown}).status_code == 404


def test_every_prompt_of_a_batch_may_name_its_own(service: Service) -> None:
    batch = {"text": ["Hi", "Ho", "He"], "sampling_params": {"max_new_tokens": 1}}
    assert asked(service, "/generate", {**batch, "lora_path": ["x", None, ""]}) == ["x", None, None]
    assert asked(service, "/generate", {**batch, "lora_path": "y"}) == ["y"] * 3
    assert asked(service, "/generate", batch) == [None] * 3


def test_a_native_request_has_a_key_and_a_salt_for_the_cache(service: Service) -> None:
    path, body = NATIVE
    reply = httpx2.post(f"{service.url}{path}", json={**body, "extra_key": "k", "cache_salt": "s"})
    assert reply.status_code == 200
    sent = [command for command in service.engine.heard if isinstance(command, Generate)][-1]
    assert (sent.extra_key, sent.cache_salt) == ("k", "s")


@pytest.mark.parametrize("stream", [False, True])
def test_an_adapter_that_is_not_loaded_is_said_to_be_so_and_the_model_alone_still_answers(
    folder: Path, stream: bool
) -> None:
    with real_engine(folder) as engine:
        engine.gate.open()
        for path, body in (CHAT, COMPLETION, NATIVE):
            reply = httpx2.post(f"{engine.url}{path}", json={**body, "lora_path": "my-adapter", "stream": stream})
            error = reply.json()["error"]
            assert (reply.status_code, error["code"], error["param"]) == (404, "adapter_not_found", "lora_path")
            assert "'my-adapter' is not loaded" in error["message"]
            assert httpx2.post(f"{engine.url}{path}", json=body).status_code == 200
