"""Mixtures of experts on one device and over meshes; what Hugging Face computes is held up in test_logits."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.experts import route
from model.layers.grouped import grouped_product, sort_pairs, through_ragged_dot, through_tiles
from model.layers.sparse import ExpertWeights
from model.spec import Experts, ExpertsKind
from tests.model.harness import Bench, Row, golden, mixed, tiny_bench

PAGES = np.arange(1, 11, dtype=np.int32)
TOLERANCE = 2e-4
HIDDEN, WIDTH = 8, 16


@cache
def weights(experts: int) -> ExpertWeights:
    rng = np.random.default_rng(experts)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32) / 4

    return ExpertWeights(draw(HIDDEN, experts), draw(experts, HIDDEN, 2 * WIDTH), draw(experts, WIDTH, HIDDEN), None)


def one_by_one(x: np.ndarray, chosen: np.ndarray, share: np.ndarray, w: ExpertWeights) -> np.ndarray:
    """Token by token and expert by expert, in float64."""
    out = np.zeros(x.shape)
    for token, expert in np.argwhere(chosen < len(w.gate_up)):
        own = chosen[token, expert]
        gate, up = np.split(x[token].astype(np.float64) @ np.asarray(w.gate_up[own], np.float64), 2)
        inner = gate / (1 + np.exp(-gate)) * up
        out[token] += share[token, expert] * (inner @ np.asarray(w.down[own], np.float64))
    return out


@partial(jax.jit, static_argnums=0)
def multiplied(kind: ExpertsKind, x: jax.Array, chosen: jax.Array, share: jax.Array, w: ExpertWeights) -> jax.Array:
    through = {"tiles": through_tiles, "ragged": through_ragged_dot}[kind]
    return through(x, sort_pairs(chosen, share, len(w.gate_up)), w.gate_up, w.down)


@settings(max_examples=30)
@given(data=st.data(), shape=st.sampled_from([(1, 2, 4), (5, 3, 3), (70, 2, 6)]))
@pytest.mark.parametrize("kind", ["tiles", "ragged"])
def test_every_pair_of_token_and_expert_counts_once_however_unevenly_they_are_spread(
    kind: ExpertsKind, data: st.DataObject, shape: tuple[int, int, int]
) -> None:
    tokens, k, experts = shape
    # ``experts`` itself stands for an expert of another shard; drawn from few, so that some get no token
    few = data.draw(st.lists(st.integers(0, experts), min_size=1, max_size=3))
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    chosen = rng.choice(few, (tokens, k)).astype(np.int32)
    share, x = rng.random((tokens, k), np.float32), rng.standard_normal((tokens, HIDDEN)).astype(np.float32)
    out = multiplied(kind, jnp.asarray(x), jnp.asarray(chosen), jnp.asarray(share), weights(experts))
    assert np.abs(np.asarray(out) - one_by_one(x, chosen, share, weights(experts))).max() < 1e-4


@pytest.mark.parametrize("normalise", [True, False])
def test_shares_are_the_largest_of_the_softmax_and_sum_to_one_where_they_are_normalised(normalise: bool) -> None:
    experts = Experts(count=6, per_token=3, width=WIDTH, normalise=normalise)
    x = np.random.default_rng(1).standard_normal((9, HIDDEN)).astype(np.float32)
    share, chosen = map(np.asarray, route(jnp.asarray(x), weights(6).router, experts))
    scores = np.asarray(jax.nn.softmax(x @ np.asarray(weights(6).router), axis=-1))
    assert np.array_equal(chosen, np.argsort(-scores, axis=1)[:, :3])
    best = np.sort(scores, axis=1)[:, :2:-1]
    assert np.allclose(share, best / best.sum(1, keepdims=True) if normalise else best, atol=1e-6)


def test_a_platform_that_expands_ragged_dot_takes_tiles() -> None:
    # jax 0.10.2 multiplies every row by the weights of every expert on a CPU
    assert grouped_product() == "tiles"


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.all(np.abs(ours - theirs).max(axis=-1) <= TOLERANCE * np.abs(theirs).max(axis=-1))


def run_through(bench: Bench, ids: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """A prompt in two chunks and two decode rows, one behind the chunks' prefix; counts by layer and expert."""
    for begin, end in ((0, 25), (25, 38)):
        step, (at,) = mixed(bench.shapes, 32, [], [Row(ids, begin, end, PAGES)])
        close(bench.logits(step)[at], expected[begin:end])
    # pages of four: the second request has the first one's prefix of 24 tokens and a copy of nothing else
    other = np.concatenate([PAGES[:6], PAGES[6:] + 10])
    step, (one, two) = mixed(bench.shapes, 32, [Row(ids, 38, 39, PAGES)], [Row(ids, 24, 38, other)])
    logits = bench.logits(step)
    close(logits[one], expected[38:39])
    close(logits[two], expected[24:38])
    return np.asarray(bench.state.routed)


@cache
def counts_on_one_device(name: str) -> np.ndarray:
    return run_through(tiny_bench(name), *golden(name))


@pytest.mark.parametrize(
    ("name", "expert", "tensor"),
    [("qwen3-moe", 2, 1), ("qwen3-moe", 4, 1), ("qwen3-moe", 2, 2), ("qwen2-moe", 2, 2), ("mixtral", 4, 1)],
)
def test_experts_on_several_devices_have_the_logits_and_the_tokens_of_one(name: str, expert: int, tensor: int) -> None:
    bench = tiny_bench(name, tensor, expert=expert)
    counts, spec = run_through(bench, *golden(name)), bench.model.spec
    # every token took its experts once on each layer that has some, and padding took none
    assert spec.experts is not None
    assert np.array_equal(counts.sum(1), [53 * spec.experts.per_token] * len(spec.sparse_layers))
    if name == "qwen3-moe":
        assert np.array_equal(counts, counts_on_one_device(name))
