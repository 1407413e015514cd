"""The real model from its GGUF file: logits and greedy text of Hugging Face transformers with the same weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.compiling import SHIPPED
from tests.model.harness import GOLDEN, NUM_PAGES, PAGE_SIZE, Bench, Row, mixed, open_bench

pytestmark = pytest.mark.model
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def bench(smollm2: Path) -> Bench:
    return dataclasses.replace(open_bench(smollm2), options=SHIPPED)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "logits" / "smollm2.npz") as arrays:
        return dict(arrays)


def logits(bench: Bench, ids: np.ndarray, cuts: list[int]) -> np.ndarray:
    """float32[positions, vocabulary], the text given in pieces that end at the cuts."""
    pages = np.random.default_rng(0).permutation(NUM_PAGES - 1)[: -(-len(ids) // PAGE_SIZE)] + 1
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        step, (at,) = mixed(bench.shapes, 64, [], [Row(ids, start, end, pages.astype(np.int32))])
        found.append(bench.logits(step)[at])
    return np.concatenate(found)


@pytest.mark.parametrize(("prompt", "cuts"), [("chat", []), ("plain", []), ("plain", [5, 30])])
def test_prompts_have_the_reference_logits(
    prompt: str, cuts: list[int], bench: Bench, golden: dict[str, np.ndarray]
) -> None:
    ours = logits(bench, golden[f"{prompt}_ids"], cuts)
    scale = golden[f"{prompt}_scale"]
    assert np.all(np.abs(ours[:, golden["subset"]] - golden[f"{prompt}_logits"]).max(-1) <= TOLERANCE * scale)
    np.testing.assert_allclose(np.abs(ours).max(-1), scale, rtol=TOLERANCE)
    np.testing.assert_array_equal(ours.argmax(-1), golden[f"{prompt}_argmax"])


def test_the_reference_answer_is_the_best_token_at_every_step(bench: Bench, golden: dict[str, np.ndarray]) -> None:
    prompt, answer = golden["chat_ids"], golden["chat_greedy"]
    ours = logits(bench, np.concatenate([prompt, answer]), [len(prompt)])
    np.testing.assert_array_equal(ours[len(prompt) - 1 : -1].argmax(-1), answer)
