"""Reductions over a vocabulary that may be dealt over the mesh; all run inside ``shard_map``."""

import jax
import jax.numpy as jnp

from sharding.axes import MODEL_AXES

BLOCK = 128
"""Tokens with neighbouring ids that sampling looks at together."""
AXIS = MODEL_AXES


def padded_vocab(size: int, shards: int) -> int:
    """Vocabulary size as the arrays have it: every shard a whole number of blocks."""
    return -(-size // (BLOCK * shards)) * BLOCK * shards


def row_max(x: jax.Array) -> jax.Array:
    """[R]: the maximum over all shards."""
    return jax.lax.pmax(jnp.max(x, axis=1), AXIS)


def row_sum(x: jax.Array) -> jax.Array:
    """[R]: the sum over all shards."""
    return jax.lax.psum(jnp.sum(x, axis=1), AXIS)


def offset(x: jax.Array) -> jax.Array:
    """Token id of this shard's first column."""
    return jax.lax.axis_index(AXIS) * x.shape[1]


def argmax(x: jax.Array) -> jax.Array:
    """int32[R]: index of the largest entry of [R, n] over all shards, the first among equals."""
    best, mine = jnp.max(x, axis=1), x.shape[1] * jax.lax.axis_index(AXIS) + jnp.argmax(x, axis=1).astype(jnp.int32)
    top = jax.lax.pmax(best, AXIS)
    return jax.lax.pmin(jnp.where(best == top, mine, jnp.iinfo(jnp.int32).max), AXIS)


def blocks(x: jax.Array) -> jax.Array:
    """``x`` [R, V] as [R, V / BLOCK, BLOCK]."""
    return x.reshape(x.shape[0], -1, BLOCK)


def first_block(x: jax.Array) -> jax.Array:
    """Index of this shard's first block."""
    return offset(x) // BLOCK


def pick_block(x: jax.Array, block: jax.Array) -> jax.Array:
    """[R, BLOCK]: the entries of block int32[R] in each row, whichever shard has it."""
    at = block - first_block(x)
    inside = (at >= 0) & (at < x.shape[1] // BLOCK)
    entries = jnp.take_along_axis(blocks(x), jnp.where(inside, at, 0)[:, None, None], axis=1)[:, 0]
    return jax.lax.psum(jnp.where(inside[:, None], entries, 0), AXIS)


def pick(x: jax.Array, token: jax.Array) -> jax.Array:
    """[R]: the entry of ``token`` int32[R] in each row, whichever shard has it; 0 for ids outside."""
    at = token - offset(x)
    inside = (at >= 0) & (at < x.shape[1])
    value = jnp.take_along_axis(x, jnp.where(inside, at, 0)[:, None], axis=1)[:, 0]
    return jax.lax.psum(jnp.where(inside, value, 0), AXIS)
