"""What the ``full`` variant does to logits before sampling: penalties, bias, bans, grammar bitmask.

Runs inside ``shard_map``; logits and counts are one shard of the vocabulary.
"""

import jax
import jax.numpy as jnp

from model import vocabulary
from model.batch import Batch
from model.device_state import Counts

BANNED = -1e30


def adjust(logits: jax.Array, batch: Batch, counts: Counts) -> jax.Array:
    """Logits float32[R, V / shards] as the sampler shall see them."""
    logits = penalise(logits, batch, counts)
    logits = logits + scatter(logits, given(batch.bias_ids), given(batch.bias))
    banned_ids = given(batch.banned_ids)
    banned = scatter(logits, banned_ids, jnp.ones(banned_ids.shape, jnp.float32)) > 0
    return jnp.where(banned | ~allowed(logits, given(batch.bitmask)), BANNED, logits)


def given(field: jax.Array | None) -> jax.Array:
    """A field that every ``full`` batch has."""
    assert field is not None, "a lean batch has no penalties, bias, bans or bitmask"
    return field


def penalise(logits: jax.Array, batch: Batch, counts: Counts) -> jax.Array:
    """Repetition penalty over prompt and output (Keskar et al., 2019); frequency and presence over output only."""
    output = counts.output[batch.slots].astype(jnp.float32)
    seen = (output > 0) | (counts.prompt[batch.slots] > 0)
    factor = given(batch.repetition)[:, None]
    repeated = jnp.where(logits > 0, logits / factor, logits * factor)
    logits = jnp.where(seen, repeated, logits)
    frequency, presence = given(batch.frequency)[:, None], given(batch.presence)[:, None]
    return logits - output * frequency - (output > 0) * presence


def scatter(logits: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """Zeros with ``values`` [R, n] added at token ``ids`` [R, n]; ids of other shards and -1 are dropped."""
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    at = ids - vocabulary.offset(logits)
    outside = (ids < 0) | (at < 0) | (at >= logits.shape[1])
    # one column more takes what does not belong here
    wide = jnp.zeros((logits.shape[0], logits.shape[1] + 1), jnp.float32)
    return wide.at[rows, jnp.where(outside, logits.shape[1], at)].add(values)[:, :-1]


def allowed(logits: jax.Array, bitmask: jax.Array) -> jax.Array:
    """bool[R, V / shards] from int32[R, ceil(vocab / 32)]."""
    token = jnp.arange(logits.shape[1], dtype=jnp.int32) + vocabulary.offset(logits)
    words = bitmask[:, jnp.minimum(token >> 5, bitmask.shape[1] - 1)]
    return (words >> (token & 31)[None, :]) & 1 == 1
