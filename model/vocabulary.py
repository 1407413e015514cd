"""Reductions over a vocabulary that may be sharded over the ``tensor`` axis; all run inside ``shard_map``.

XLA's CPU back end does not vectorise a reduction over the last axis. ``fold_columns`` first combines LANES equal slices
element by element, which it does vectorise, and leaves a last axis LANES times shorter.
"""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp

LANES = 16
AXIS = "tensor"


def padded_vocab(size: int, shards: int) -> int:
    """Vocabulary size as the arrays have it: every shard a multiple of LANES."""
    return -(-size // (LANES * shards)) * LANES * shards


def slices(x: jax.Array) -> list[jax.Array]:
    """``x`` [R, V] cut in LANES pieces [R, V / LANES]."""
    return jnp.split(x, LANES, axis=1)


def fold_columns(x: jax.Array, combine: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """[R, V / LANES]: the slices of ``x`` combined element by element."""
    return reduce(combine, slices(x))


def row_max(x: jax.Array) -> jax.Array:
    """[R]: the maximum over all shards."""
    return jax.lax.pmax(jnp.max(fold_columns(x, jnp.maximum), axis=1), AXIS)


def row_sum(x: jax.Array) -> jax.Array:
    """[R]: the sum over all shards."""
    return jax.lax.psum(jnp.sum(fold_columns(x, jnp.add), axis=1), AXIS)


def offset(x: jax.Array) -> jax.Array:
    """Token id of this shard's first column."""
    return jax.lax.axis_index(AXIS) * x.shape[1]


def argmax(x: jax.Array) -> jax.Array:
    """int32[R]: token id of the largest entry over all shards. Among equals the choice is fixed, not the first."""
    width = x.shape[1] // LANES
    column = jnp.argmax(fold_columns(x, jnp.maximum), axis=1).astype(jnp.int32)
    # shape: [R, LANES]: the candidates that share the winning column
    at = column[:, None] + width * jnp.arange(LANES, dtype=jnp.int32)[None, :]
    candidates = jnp.take_along_axis(x, at, axis=1)
    lane = jnp.argmax(candidates, axis=1).astype(jnp.int32)
    best = jnp.take_along_axis(candidates, lane[:, None], axis=1)[:, 0]
    mine = offset(x) + column + width * lane
    top = jax.lax.pmax(best, AXIS)
    return jax.lax.pmin(jnp.where(best == top, mine, jnp.iinfo(jnp.int32).max), AXIS)


def pick(x: jax.Array, token: jax.Array) -> jax.Array:
    """[R]: the entry of ``token`` int32[R] in each row, whichever shard has it; 0 for ids outside."""
    at = token - offset(x)
    inside = (at >= 0) & (at < x.shape[1])
    value = jnp.take_along_axis(x, jnp.where(inside, at, 0)[:, None], axis=1)[:, 0]
    return jax.lax.psum(jnp.where(inside, value, 0), AXIS)
