"""The whole service with the real model, as the unmodified OpenAI client and lm-eval see it."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.compiling import shipped_to_children
from tests.serving.process.real_service import launched
from tests.serving.process.service import ROOT, Service
from tests.serving.process.test_service import metric

pytestmark = pytest.mark.model

WAIT_S = 60.0
CONTEXT, PAGE = 2048, 16
NAME = "smollm2-135m"
ASK: list[dict[str, str]] = [{"role": "user", "content": "Name the capital of France."}]
SETTINGS = (
    f"model.context_length={CONTEXT}",
    f"cache.page_size={PAGE}",
    "cache.max_total_tokens=8192",
    # few programs, since a fresh machine compiles all of them before the first request is answered
    "scheduler.max_running_requests=8",
    "scheduler.chunk_tokens=64",
    "scheduler.check=every_step",
)
SCORED: dict[str, object] = {
    "model": NAME,
    "prompt": "The capital of France is Paris. The capital of Italy is",
    "max_tokens": 8,
    "temperature": 0,
    "logprobs": 3,
    "echo": True,
}


COMPILE_S = 300
"""The first request waits for its programs, which nothing may have compiled before."""


@dataclass(slots=True, frozen=True)
class Real:
    """A service that is ready, and what it said to the first request, sent at once."""

    service: Service
    client: openai.OpenAI
    first: dict[str, Any]

    def complete(self, **fields: object) -> dict[str, Any]:
        """One completion."""
        return posted(self.service, fields)

    def chat(self, **fields: object) -> ChatCompletion:
        """One chat through the OpenAI client."""
        return self.client.chat.completions.create(model=NAME, temperature=0, **{"messages": ASK, **fields})

    def load(self) -> dict[str, float]:
        """What runs and waits."""
        [load] = self.service.client.get("/get_load").json()
        return load

    def figures(self, *names: str) -> dict[str, float]:
        """Metrics by name."""
        text = self.service.client.get("/metrics").text
        return {name: metric(text, name) for name in names}


def posted(service: Service, fields: dict[str, object]) -> dict[str, Any]:
    reply = httpx2.post(f"{service.url}/v1/completions", json={"model": NAME, **fields}, timeout=COMPILE_S)
    assert reply.status_code == 200, reply.text
    return reply.json()


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    folder = tmp_path_factory.mktemp("real")
    with shipped_to_children(), launched(ROOT / "configs" / "smollm2-135m.yaml", folder, *SETTINGS) as service:
        first = posted(service, SCORED)
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=WAIT_S) as client:
            yield Real(service, client, first)


def greedy(logprobs: dict[str, Any]) -> list[bool]:
    """By token, as lm-eval decides: whether it is the best of its position. The first has none."""
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    pairs = zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True)
    return [max(top.values()) <= value for value, top in pairs]


def test_the_first_request_after_ready_is_scored_and_every_greedy_token_is_the_best_of_its_position(real: Real) -> None:
    [choice] = real.first["choices"]
    best = greedy(choice["logprobs"])
    asked = real.first["usage"]["prompt_tokens"]
    assert choice["text"].startswith(f"{SCORED['prompt']} Rome")
    assert len(best) == asked + 7
    assert all(best[asked - 1 :])
    assert not all(best)


def test_a_prompt_is_scored_as_its_tokens_were_when_they_were_drawn(real: Real) -> None:
    [drawn] = real.first["choices"]
    again = real.complete(**SCORED | {"prompt": drawn["text"], "max_tokens": 0})
    [scored] = again["choices"]
    asked = real.first["usage"]["prompt_tokens"]
    assert scored["logprobs"]["tokens"] == drawn["logprobs"]["tokens"]
    assert all(greedy(scored["logprobs"])[asked - 1 :])
    assert scored["logprobs"]["token_logprobs"][1:] == pytest.approx(drawn["logprobs"]["token_logprobs"][1:], abs=0.1)


def test_it_names_the_capital_of_france(real: Real) -> None:
    choice = real.chat().choices[0]
    assert choice.message.content == "The capital of France is Paris."
    assert choice.finish_reason == "stop"


def test_it_names_the_capital_of_france_in_pieces_with_the_usage_last(real: Real) -> None:
    chunks = list(
        real.client.chat.completions.create(
            model=NAME,
            messages=ASK,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == "The capital of France is Paris."
    assert sum(map(bool, pieces)) > 3
    usage, whole = chunks[-1].usage, real.chat().usage
    assert usage is not None
    assert whole is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens)


def test_a_stop_string_ends_the_text_before_it(real: Real) -> None:
    reply = real.chat(stop=["Paris"])
    assert reply.choices[0].message.content == "The capital of France is "
    assert reply.choices[0].finish_reason == "stop"


def test_of_two_copies_the_second_draws_as_the_next_seed_does(real: Real) -> None:
    fields: dict[str, object] = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 1.0}
    both = [choice["text"] for choice in real.complete(**fields, seed=7, n=2)["choices"]]
    alone = [real.complete(**fields, seed=seed)["choices"][0]["text"] for seed in (7, 8)]
    assert both == alone
    assert both[0] != both[1]


def test_a_seed_gives_the_same_text_alone_and_in_a_crowd(real: Real) -> None:
    fields: dict[str, object] = {"prompt": "My favourite animal is", "max_tokens": 32, "temperature": 0.8, "top_p": 0.9}
    alone = real.complete(**fields, seed=11)["choices"][0]["text"]
    others = [
        {"prompt": "word " * n, "max_tokens": 64, "temperature": 1.0, "ignore_eos": True} for n in range(1, 40, 3)
    ]
    with ThreadPoolExecutor(len(others)) as threads:
        crowd = [threads.submit(posted, real.service, other) for other in others]
        wait_for(lambda: real.load()["num_running_reqs"] >= 4, "no crowd came together")
        assert real.complete(**fields, seed=11)["choices"][0]["text"] == alone
        assert all(each.result()["usage"]["completion_tokens"] == 64 for each in crowd)


def test_the_second_turn_finds_the_first_in_the_cache(real: Real) -> None:
    messages = [{"role": "user", "content": "Name the capital of Spain, then say one thing about it."}]
    first = real.chat(messages=messages, max_tokens=40)
    assert first.usage is not None
    answer = {"role": "assistant", "content": first.choices[0].message.content or ""}
    second = real.chat(messages=[*messages, answer, {"role": "user", "content": "Thank you."}], max_tokens=4)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens // PAGE * PAGE > 0


def test_a_client_that_leaves_frees_what_its_request_held(real: Real) -> None:
    body = {"model": NAME, "prompt": "Count: 1, 2, 3,", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    before = real.figures("radjax_num_aborted_requests_total")
    with httpx2.stream("POST", f"{real.service.url}/v1/completions", json=body, timeout=WAIT_S) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        wait_for(lambda: real.load()["num_running_reqs"] == 1, "the request is not seen to run")
    wait_for(lambda: real.load()["num_running_reqs"] == 0, "the request outlived its client", 10.0)
    assert real.load()["num_tokens"] == 0
    name = "radjax_num_aborted_requests_total"
    wait_for(lambda: real.figures(name)[name] == before[name] + 1, "the abort was not counted")


def test_the_counters_grow_by_what_clients_were_told(real: Real) -> None:
    names = ("radjax_prompt_tokens_total", "radjax_generation_tokens_total", "radjax_num_requests_total")
    before = real.figures(*names)
    told = [real.chat(max_tokens=3 + i).usage for i in range(4)]
    expected = {
        names[0]: sum(usage.prompt_tokens for usage in told if usage),
        names[1]: sum(usage.completion_tokens for usage in told if usage),
        names[2]: len(told),
    }

    def grown() -> dict[str, float]:
        return {name: value - before[name] for name, value in real.figures(*names).items()}

    wait_for(lambda: grown() == expected, f"{grown()} is not {expected}", 10.0)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(real: Real) -> None:
    with pytest.raises(openai.BadRequestError, match=f"{CONTEXT + 50} tokens; at most {CONTEXT - 1}") as caught:
        real.client.completions.create(model=NAME, prompt=[5] * (CONTEXT + 50))
    assert caught.value.code == "context_length_exceeded"
    assert real.service.status("/health") == 200
