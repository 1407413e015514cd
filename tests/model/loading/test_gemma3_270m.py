"""Gemma 3 270M from its GGUF file: logits, greedy text and token ids of Hugging Face transformers."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from model.device_state import allocate, state_shapes
from tests.compiling import SHIPPED
from tests.model.harness import GOLDEN, Bench, Row, decode, mixed, open_bench

pytestmark = pytest.mark.model
TOLERANCE = 2e-4
NUM_PAGES = 400


@pytest.fixture(scope="module")
def bench(gemma3: Path) -> Bench:
    bench = open_bench(gemma3)
    shapes = dataclasses.replace(bench.shapes, mixed_tokens=(64, 512), pages_per_row=256)
    state = allocate(state_shapes(bench.model, shapes, NUM_PAGES))
    return dataclasses.replace(bench, shapes=shapes, state=state, options=SHIPPED)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "logits" / "gemma3-270m.npz") as arrays:
        return dict(arrays)


@pytest.mark.slow
def test_a_text_longer_than_the_window_has_the_reference_logits_and_goes_on_as_the_reference_does(
    bench: Bench, golden: dict[str, np.ndarray]
) -> None:
    ids = np.concatenate([golden["ids"], golden["greedy"]])
    pages = (np.random.default_rng(0).permutation(NUM_PAGES - 1)[: -(-len(ids) // 4)] + 1).astype(np.int32)
    prompt = len(golden["ids"])
    step, (first,) = mixed(bench.shapes, 512, [], [Row(ids, 0, 500, pages)])
    begun = bench.logits(step)[first]
    step, (second,) = mixed(bench.shapes, 512, [], [Row(ids, 500, prompt, pages)])
    ours = np.concatenate([begun, bench.logits(step)[second]])[golden["at"]]
    scale = golden["scale"]
    assert np.all(np.abs(ours[:, golden["subset"]] - golden["logits"]).max(-1) <= TOLERANCE * scale)
    np.testing.assert_allclose(np.abs(ours).max(-1), scale, rtol=TOLERANCE)
    np.testing.assert_array_equal(ours.argmax(-1), golden["argmax"])
    best = [int(ours[-1].argmax())]
    for at in range(prompt, len(ids) - 1):
        best.append(int(bench.logits(decode(bench.shapes, 2, [Row(ids, at, at + 1, pages)]))[0].argmax()))
    assert best == golden["greedy"].tolist()


def test_gemma_3_has_the_token_ids_of_transformers(gemma3: Path) -> None:
    golden = json.loads((Path(__file__).parents[2] / "golden" / "tokens" / "gemma3-270m.json").read_text())
    built = Tokenizer.from_file(str(gemma3 / "tokenizer.json"))
    for entry in golden["texts"]:
        assert built.encode(entry["text"]).ids == entry["ids"], entry["text"]
