"""Logits against Hugging Face transformers in float32, however the prompt is cut up."""

import numpy as np
import pytest

from tests.model.harness import GOLDEN, NUM_PAGES, Bench, Row, decode, golden, mixed, open_bench

ARCHITECTURES = ("llama", "llama-9-3", "llama3", "mistral", "qwen2", "qwen3")
TOLERANCE = 2e-4


def pages(seed: int) -> np.ndarray:
    """Ten pages in no order."""
    return (np.random.default_rng(seed).permutation(NUM_PAGES - 1)[:10] + 1).astype(np.int32)


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    allowed = TOLERANCE * np.abs(theirs).max(axis=-1)
    worst = np.abs(ours - theirs).max(axis=-1)
    assert np.all(worst <= allowed), f"largest difference {worst.max()} where {allowed.min()} is allowed"


def whole(bench: Bench, row: Row) -> np.ndarray:
    step, (at,) = mixed(bench.shapes, 64, [], [row])
    return bench.logits(step)[at]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_whole_prompt_has_the_reference_logits(name: str) -> None:
    ids, expected = golden(name)
    bench = open_bench(GOLDEN / "models" / name)
    assert_close(whole(bench, Row(ids, 0, len(ids), pages(1))), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_chunks_and_decode_steps_have_the_reference_logits(name: str) -> None:
    ids, expected = golden(name)
    bench = open_bench(GOLDEN / "models" / name)
    mine, other = pages(2), pages(3)
    other = np.setdiff1d(np.arange(1, NUM_PAGES, dtype=np.int32), mine)[:10]
    got = np.zeros_like(expected)
    # two requests of the same text share a step, out of phase
    step, (at,) = mixed(bench.shapes, 32, [], [Row(ids, 0, 13, mine)])
    got[:13] = bench.logits(step)[at]
    step, (first, second) = mixed(bench.shapes, 64, [], [Row(ids, 13, 30, mine), Row(ids, 0, 21, other)])
    logits = bench.logits(step)
    got[13:30] = logits[first]
    assert_close(logits[second], expected[:21])
    for position in range(30, 33):
        rows = [Row(ids, position, position + 1, mine), Row(ids, position - 9, position - 8, other)]
        logits = bench.logits(decode(bench.shapes, 2 if position < 32 else 4, rows))
        got[position] = logits[0]
        assert_close(logits[1], expected[position - 9])
    for position in range(33, 40):
        piece = Row(ids, position - 9, position - 8, other)
        step, (one, two) = mixed(bench.shapes, 32, [Row(ids, position, position + 1, mine)], [piece])
        logits = bench.logits(step)
        got[position] = logits[one][0]
        assert_close(logits[two][0], expected[position - 9])
    assert_close(got, expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decoding_on_another_requests_prefix_has_the_reference_logits(name: str) -> None:
    ids, expected = golden(name)
    bench = open_bench(GOLDEN / "models" / name)
    first = pages(4)
    whole(bench, Row(ids, 0, 24, first))
    borrowed = np.concatenate([first[:5], np.setdiff1d(np.arange(1, NUM_PAGES, dtype=np.int32), first)[:5]])
    step, (at,) = mixed(bench.shapes, 32, [], [Row(ids, 20, 38, borrowed)])
    assert_close(bench.logits(step)[at], expected[20:38])
    logits = bench.logits(decode(bench.shapes, 2, [Row(ids, 38, 39, borrowed)]))
    assert_close(logits[0], expected[38])


@pytest.mark.parametrize("tensor", [2, 4, 8])
@pytest.mark.parametrize("name", ["llama", "llama-9-3", "qwen2", "qwen3"])
def test_tensor_parallel_logits_are_the_single_device_ones(name: str, tensor: int) -> None:
    ids, expected = golden(name)
    bench = open_bench(GOLDEN / "models" / name, tensor)
    row = pages(5)
    step, (at,) = mixed(bench.shapes, 64, [], [Row(ids, 0, 39, row)])
    assert_close(bench.logits(step)[at], expected[:39])
    assert_close(bench.logits(decode(bench.shapes, 2, [Row(ids, 39, 40, row)]))[0], expected[39])
