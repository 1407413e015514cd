"""From logits to one token a row: temperature, top-k, top-p, min-p, then a Gumbel-max draw.

The draw of a row depends on its seed, the position of the sampled token and the token ids alone, so a seed gives the
same text in any batch. Thresholds are found by bisection, so nothing is sorted and a sharded vocabulary is never
gathered. Runs inside ``shard_map``; logits are one shard, float32[R, V / shards].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model import vocabulary
from model.batch import Batch

MIN_TEMPERATURE = 1e-5
"""Below it a row is greedy; dividing by less would overflow."""


class Rules(NamedTuple):
    """Sampling parameters by row."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    seed: jax.Array
    position: jax.Array
    """int32[R]: position that the sampled token will have."""


def rules_of(batch: Batch) -> Rules:
    """The rules of a step."""
    position = batch.starts + batch.lengths
    return Rules(batch.temperature, batch.top_k, batch.top_p, batch.min_p, batch.seed, position)


def sample(logits: jax.Array, rules: Rules) -> jax.Array:
    """int32[R]: argmax where the temperature is 0, a draw elsewhere."""
    heat = jnp.where(rules.temperature >= MIN_TEMPERATURE, rules.temperature, 0.0)
    filtered = (heat > 0) & ((rules.top_k > 0) | (rules.top_p < 1) | (rules.min_p > 0))

    def kept() -> jax.Array:
        scaled = logits / jnp.where(heat > 0, heat, 1.0)[:, None]
        inside = ~filtered[:, None] | (scaled >= floor(scaled, rules)[:, None])
        return jnp.where(inside, logits, -jnp.inf)

    def draw() -> jax.Array:
        chosen = jax.lax.cond(jnp.any(filtered), kept, lambda: logits)
        # argmax(logits / T + noise), times T: one pass also for the rows of temperature 0, whose argmax stays exact
        return vocabulary.argmax(chosen + heat[:, None] * gumbel(logits, rules))

    return jax.lax.cond(jnp.any(heat > 0), draw, lambda: vocabulary.argmax(logits))


def floor(scaled: jax.Array, rules: Rules) -> jax.Array:
    """float32[R]: the smallest scaled logit that top-k, then top-p, then min-p leave in."""
    top = vocabulary.row_max(scaled)
    nothing = jnp.full(top.shape, -jnp.inf)
    by_k = jax.lax.cond(jnp.any(rules.top_k > 0), lambda: kth_largest(scaled, rules.top_k), lambda: nothing)
    by_p = jax.lax.cond(jnp.any(rules.top_p < 1), lambda: nucleus(scaled, top, by_k, rules.top_p), lambda: by_k)
    by_min = jnp.where(rules.min_p > 0, top + jnp.log(jnp.maximum(rules.min_p, 1e-30)), -jnp.inf)
    # the best token always stays, whatever rounding says
    return jnp.minimum(jnp.maximum(by_p, by_min), top)


def ordered(x: jax.Array) -> jax.Array:
    """float32 as int32 with the same order."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def unordered(key: jax.Array) -> jax.Array:
    """Inverse of ``ordered``."""
    return jax.lax.bitcast_convert_type(jnp.where(key < 0, key ^ jnp.int32(0x7FFFFFFF), key), jnp.float32)


def bisect(x: jax.Array, enough: jax.Array, weigh: jax.Array) -> jax.Array:
    """float32[R]: the largest t with sum(weigh[x >= t]) >= ``enough``, exact to the bit in 32 halvings."""
    keys = ordered(x)
    low = jnp.full(enough.shape, jnp.iinfo(jnp.int32).min, jnp.int32)
    high = jnp.full(enough.shape, jnp.iinfo(jnp.int32).max, jnp.int32)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        # the mean of two int32 without overflow, rounded up
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
        held = vocabulary.row_sum(jnp.where(keys >= middle[:, None], weigh, 0))
        fits = held >= enough
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle - 1)

    low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return unordered(low)


def kth_largest(scaled: jax.Array, k: jax.Array) -> jax.Array:
    """float32[R]: the k-th largest entry; -inf where ``k`` is 0."""
    found = bisect(scaled, jnp.maximum(k, 1), jnp.ones(scaled.shape, jnp.int32))
    return jnp.where(k > 0, found, -jnp.inf)


def nucleus(scaled: jax.Array, top: jax.Array, by_k: jax.Array, p: jax.Array) -> jax.Array:
    """float32[R]: smallest entry of the smallest set, among those at least ``by_k``, that has the share ``p``."""
    mass = jnp.where(scaled >= by_k[:, None], jnp.exp(scaled - top[:, None]), 0.0)
    found = bisect(scaled, p * vocabulary.row_sum(mass), mass)
    return jnp.where(p < 1, jnp.maximum(found, by_k), by_k)


def gumbel(logits: jax.Array, rules: Rules) -> jax.Array:
    """Standard Gumbel noise float32[R, V / shards] from (seed, position, token id) alone.

    A counter hash (murmur3's finaliser) in place of threefry: 1.6 million draws a step must cost little.
    """
    row = mix(mix(rules.seed.astype(jnp.uint32)) + rules.position.astype(jnp.uint32) * jnp.uint32(0x9E3779B1))
    token = jnp.arange(logits.shape[1], dtype=jnp.uint32) + vocabulary.offset(logits).astype(jnp.uint32)
    bits = mix(row[:, None] ^ (token * jnp.uint32(0x85EBCA77) + jnp.uint32(0x165667B1))[None, :])
    uniform = ((bits >> 8).astype(jnp.float32) + 0.5) * jnp.float32(2**-24)
    return -jnp.log(-jnp.log(uniform))


def mix(h: jax.Array) -> jax.Array:
    """murmur3's 32-bit finaliser."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
