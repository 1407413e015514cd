"""Gemma 3 270M over HTTP: with hybrid pools, full pools and no prefix cache a long conversation reads the same.

It is a base model without a chat template, so the turns are completions that begin with all that was said.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.compiling import shipped_to_children
from tests.serving.process.real_service import launched
from tests.serving.process.service import ROOT, Service

# document: M-6, O-26

pytestmark = [pytest.mark.model, pytest.mark.slow]

WINDOW = 512
SETTINGS = (
    # so that other batch shapes and chunkings make no difference that greedy text could show
    "model.dtype=float32",
    "model.context_length=1536",
    "cache.page_size=16",
    "cache.max_total_tokens=1792",
    # the windows of two conversations, and a chunk
    "cache.swa_full_tokens_ratio=0.7",
    "scheduler.max_running_requests=2",
    "scheduler.chunk_tokens=64",
    "scheduler.check=every_step",
)
TURNS = 2
WHO = (("Ada", 100), ("Ben", 500))


@dataclass(slots=True, frozen=True)
class Answer:
    """What was said, and what that took."""

    text: str
    prompt_tokens: int
    cached_tokens: int


def complete(service: Service, prompt: str) -> Answer:
    fields = {"model": "gemma3-270m", "prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    reply = httpx2.post(f"{service.url}/v1/completions", json=fields, timeout=300.0)
    assert reply.status_code == 200, reply.text
    said: dict[str, Any] = reply.json()
    usage = said["usage"]
    return Answer(said["choices"][0]["text"], usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"])


def converse(folder: Path, *settings: str) -> tuple[list[Answer], str]:
    """Turns of two conversations that run side by side, both longer than the window from the first on; the banner."""
    texts = [f"{name} counts: {', '.join(map(str, range(start, start + 110)))}" for name, start in WHO]
    said: list[Answer] = []
    with (
        shipped_to_children(),
        launched(ROOT / "configs" / "gemma3-270m.yaml", folder, *SETTINGS, *settings) as service,
        ThreadPoolExecutor(len(WHO)) as threads,
    ):
        for _ in range(TURNS):
            answers = list(threads.map(lambda text: complete(service, text), texts))
            assert all(answer.prompt_tokens > WINDOW for answer in answers)
            said += answers
            texts = [f"{text}{answer.text} and then" for text, answer in zip(texts, answers, strict=True)]
        assert service.status("/health") == 200
        return said, service.said


def test_conversations_longer_than_the_window_read_the_same_with_any_cache(tmp_path: Path) -> None:
    hybrid, banner = converse(tmp_path)
    full, _ = converse(tmp_path, "cache.hybrid=false")
    without, _ = converse(tmp_path, "cache.radix=false")
    assert "sliding-window radix" in banner
    assert re.search(r"KV pages +.+ MiB, \d+% less than .+ MiB without a window", banner)
    assert [answer.text for answer in hybrid] == [answer.text for answer in full]
    assert [answer.text for answer in hybrid] == [answer.text for answer in without]
    # a later turn goes on from the cache, though most of what it has is gone from the window group
    later = [*hybrid[len(WHO) :], *full[len(WHO) :]]
    assert all(answer.cached_tokens > WINDOW for answer in later)
    assert not any(answer.cached_tokens for answer in without)
