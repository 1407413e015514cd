"""Sampling: relations between its parameters, and its distribution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from configs.schema import Parallel
from model.sampler import Rules, bisect, floor, sample, uniform
from sharding.mesh import build_mesh
from tests.compiling import SHIPPED

VOCAB = 512


@partial(jax.jit, static_argnums=(0, 1), compiler_options=dict(SHIPPED))
def on_mesh(function, mesh: Mesh, logits: jax.Array, rules: Rules) -> jax.Array:
    run = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(None, "tensor"), PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return run(logits, rules)


ONE, FOUR = build_mesh(Parallel()), build_mesh(Parallel(tensor=4))


def rules(rows: int, *, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, position=0) -> Rules:
    def column(value: object, dtype: type) -> jax.Array:
        return jnp.asarray(np.broadcast_to(np.asarray(value, dtype), (rows,)))

    return Rules(
        column(temperature, np.float32),
        column(top_k, np.int32),
        column(top_p, np.float32),
        column(min_p, np.float32),
        column(seed, np.uint32),
        column(position, np.int32),
    )


def random_logits(rows: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0, 3, (rows, VOCAB)).astype(np.float32))


def kept(logits: jax.Array, some: Rules) -> np.ndarray:
    scaled = logits / jnp.where(some.temperature > 0, some.temperature, 1.0)[:, None]
    return np.asarray(scaled >= on_mesh(floor, ONE, scaled, some)[:, None])


def test_temperature_zero_is_the_argmax_in_any_batch() -> None:
    logits = random_logits(16)
    mixed = rules(16, temperature=np.where(np.arange(16) % 2, 1.0, 0.0), seed=np.arange(16))
    got = np.asarray(on_mesh(sample, ONE, logits, mixed))
    assert np.array_equal(got[::2], np.argmax(np.asarray(logits), axis=1)[::2])
    assert not np.array_equal(got[1::2], np.argmax(np.asarray(logits), axis=1)[1::2])


def test_uniform_numbers_are_above_0_and_below_1() -> None:
    for low in (0, 255):
        found = jax.jit(uniform)(jnp.arange(2**24, dtype=jnp.uint32) << 8 | low)
        assert float(found.min()) > 0
        assert float(found.max()) < 1


SEED_TOKEN = (8576, 91)
"""A seed, and a token for which its hash at position 0 begins with 24 ones."""


def test_no_noise_moves_a_greedy_row() -> None:
    seed, loud = SEED_TOKEN
    logits = np.zeros((2, VOCAB), np.float32)
    # another token of the block whose noise is drawn
    best = loud ^ 1
    logits[:, best] = 5.0
    got = on_mesh(sample, ONE, jnp.asarray(logits), rules(2, seed=seed))
    assert np.asarray(got).tolist() == [best, best]


@pytest.mark.parametrize("limit", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_the_narrowest_filter_is_the_argmax(limit: dict[str, float]) -> None:
    logits = random_logits(8)
    got = on_mesh(sample, ONE, logits, rules(8, temperature=1.5, seed=np.arange(8), **limit))
    assert np.array_equal(np.asarray(got), np.argmax(np.asarray(logits), axis=1))


@given(k=st.integers(1, VOCAB), seed=st.integers(0, 2**31), temperature=st.floats(0.1, 5))
@settings(max_examples=25, deadline=None)
def test_top_k_keeps_exactly_the_k_best(k: int, seed: int, temperature: float) -> None:
    logits = random_logits(3, seed)
    mask = kept(logits, rules(3, temperature=temperature, top_k=k))
    best = np.argsort(-np.asarray(logits), axis=1)[:, :k]
    assert np.array_equal(mask.sum(axis=1), [k] * 3)
    assert np.take_along_axis(mask, best, axis=1).all()


@given(p=st.floats(0.01, 0.99), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_top_p_keeps_the_smallest_set_with_that_mass(p: float, seed: int) -> None:
    logits = random_logits(3, seed)
    mask = kept(logits, rules(3, temperature=1.0, top_p=p))
    probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
    for row in range(3):
        held = np.sort(probabilities[row][mask[row]])
        assert held.sum() >= p - 1e-5
        assert held.sum() - held[0] < p + 1e-5


def test_min_p_keeps_what_has_that_share_of_the_best() -> None:
    logits = random_logits(4)
    mask = kept(logits, rules(4, temperature=1.0, min_p=0.05))
    probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
    ratio = probabilities / probabilities.max(axis=1, keepdims=True)
    clear = np.abs(ratio - 0.05) > 1e-6
    assert np.array_equal(mask[clear], (ratio >= 0.05)[clear])


def test_a_seed_gives_the_same_token_in_any_batch_and_on_any_mesh() -> None:
    logits = random_logits(12)
    some = rules(12, temperature=0.9, top_k=40, top_p=0.95, seed=np.arange(12), position=np.arange(12) * 7)
    all_rows = np.asarray(on_mesh(sample, ONE, logits, some))
    assert np.array_equal(all_rows, np.asarray(on_mesh(sample, FOUR, logits, some)))
    for row in range(12):
        alone = jax.tree.map(lambda x, row=row: jnp.tile(x[row : row + 1], 2), some)
        assert np.asarray(on_mesh(sample, ONE, jnp.tile(logits[row : row + 1], (2, 1)), alone))[0] == all_rows[row]


def test_draws_follow_the_distribution() -> None:
    rows, chances = 4096, np.array([0.5, 0.25, 0.15, 0.1])
    row = np.full(VOCAB, -np.inf, np.float32)
    row[[3, 77, 300, 511]] = np.log(chances)
    logits = jnp.asarray(np.tile(row, (rows, 1)))
    for seeds, positions in ((np.arange(rows), 0), (7, np.arange(rows))):
        got = np.asarray(on_mesh(sample, ONE, logits, rules(rows, temperature=1.0, seed=seeds, position=positions)))
        counts = np.array([(got == token).sum() for token in (3, 77, 300, 511)])
        assert counts.sum() == rows
        chi_square = ((counts - rows * chances) ** 2 / (rows * chances)).sum()
        assert chi_square < 16.3, counts  # 0.1 % of three degrees of freedom


def at_least(x: jax.Array, some: Rules) -> jax.Array:
    """The largest threshold that as many values reach as ``top_k`` says."""
    return bisect(x, some.top_k, jnp.ones(x.shape, jnp.int32))


@given(values=st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=32, max_size=32), share=st.floats(0.01, 1.0))
@settings(max_examples=50, deadline=None)
def test_bisection_finds_the_largest_threshold_that_holds_enough(values: list[float], share: float) -> None:
    x = jnp.asarray(np.array([values] * 2, np.float32))
    enough = max(1, int(32 * share))
    found = np.asarray(on_mesh(at_least, ONE, x, rules(2, top_k=enough)))[0]
    assert found == np.sort(np.array(values, np.float32))[::-1][enough - 1]
