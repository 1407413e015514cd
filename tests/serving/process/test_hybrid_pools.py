"""Gemma 3 270M through the Python API: hybrid pools, full pools and no prefix cache say the same."""

import pytest

from serving.llm import LLM, Output, SamplingOptions
from tests.serving.process.service import ROOT

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
GREEDY = SamplingOptions(max_tokens=16, temperature=0.0, ignore_eos=True)
TURNS = 2


def converse(*overrides: str) -> list[Output]:
    """Turns of two conversations that run side by side, both longer than the window from the first on."""
    texts = [f"{name} counts: {', '.join(map(str, range(start, start + 110)))}" for name, start in WHO]
    said: list[Output] = []
    with LLM(ROOT / "configs" / "gemma3-270m.yaml", (*SETTINGS, *overrides)) as llm:
        for _ in range(TURNS):
            answers = llm.generate(texts, GREEDY)
            assert all(len(answer.prompt_ids) > WINDOW for answer in answers)
            said += answers
            texts = [f"{text}{answer.text} and then" for text, answer in zip(texts, answers, strict=True)]
    return said


WHO = (("Ada", 100), ("Ben", 500))


def test_conversations_longer_than_the_window_read_the_same_with_any_cache() -> None:
    hybrid, full, without = converse(), converse("cache.hybrid=false"), converse("cache.radix=false")
    assert [answer.token_ids for answer in hybrid] == [answer.token_ids for answer in full]
    assert [answer.token_ids for answer in hybrid] == [answer.token_ids for answer in without]
    # a later turn goes on from the cache, though most of what it has is gone from the window group
    later = [*hybrid[len(WHO) :], *full[len(WHO) :]]
    assert all(answer.cached_tokens > WINDOW for answer in later)
    assert not any(answer.cached_tokens for answer in without)
