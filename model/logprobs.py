"""Log probabilities of the raw distribution. Runs inside ``shard_map`` over a sharded vocabulary."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model import vocabulary
from model.interface import MAX_TOP_LOGPROBS


class Scored(NamedTuple):
    """Per row: the token's log probability and the best tokens, best first."""

    logprob: jax.Array
    top_ids: jax.Array
    top_logprobs: jax.Array


def score(logits: jax.Array, token: jax.Array, wants_top: jax.Array) -> Scored:
    """Log probabilities of ``token`` int32[R]; the best MAX_TOP_LOGPROBS where any of ``wants_top`` bool[R] is set."""
    top = vocabulary.row_max(logits)
    log_total = top + jnp.log(vocabulary.row_sum(jnp.exp(logits - top[:, None])))
    rows = logits.shape[0]

    def best() -> tuple[jax.Array, jax.Array]:
        values, at = jax.lax.top_k(logits, MAX_TOP_LOGPROBS)
        ids = at.astype(jnp.int32) + vocabulary.offset(logits)
        # each shard's best, side by side, then the best of those
        values = jax.lax.all_gather(values, vocabulary.AXIS, axis=1, tiled=True)
        ids = jax.lax.all_gather(ids, vocabulary.AXIS, axis=1, tiled=True)
        values, at = jax.lax.top_k(values, MAX_TOP_LOGPROBS)
        return jnp.take_along_axis(ids, at, axis=1), values - log_total[:, None]

    def none() -> tuple[jax.Array, jax.Array]:
        shape = (rows, MAX_TOP_LOGPROBS)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)

    ids, logprobs = jax.lax.cond(jnp.any(wants_top), best, none)
    return Scored(vocabulary.pick(logits, token) - log_total, ids, logprobs)
