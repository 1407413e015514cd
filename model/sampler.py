"""From logits to one token a row: temperature, top-k, top-p, min-p, then two Gumbel-max draws.

The first draw chooses a block of the vocabulary by its share of the distribution, the second a token of the block, so
that noise is made for a few hundred entries and not for every token. A row's draws depend on its seed, the position of
the sampled token and the token ids alone, so a seed gives the same text in any batch and on any mesh. Thresholds are
found by bisection, so nothing is sorted and a sharded vocabulary is never gathered. Runs inside ``shard_map``; logits
are one shard, float32[R, V / shards].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model import vocabulary
from model.batch import Batch
from model.exponential import exponential
from model.vocabulary import BLOCK

MIN_TEMPERATURE = 1e-5
"""Below it a row is greedy; dividing by less would overflow."""
COLD = 1e30
"""Stands for 1 / temperature at temperature 0: what is below the largest logit loses all weight."""
BLOCK_STREAM, TOKEN_STREAM = 0x27D4EB2F, 0x165667B1
"""Constants that keep the noise of the two draws apart."""


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

    return draw(jax.lax.cond(jnp.any(filtered), kept, lambda: logits), heat, rules)


def draw(logits: jax.Array, heat: jax.Array, rules: Rules) -> jax.Array:
    """int32[R]: a token in proportion to exp(logits / ``heat``); at heat 0 the argmax, by the same operations."""
    rate = jnp.where(heat > 0, 1 / jnp.where(heat > 0, heat, 1.0), COLD)
    below = (logits - vocabulary.row_max(logits)[:, None]) * rate[:, None]
    mass = jnp.sum(vocabulary.blocks(exponential(below)), axis=-1)
    block_ids = vocabulary.first_block(logits) + jnp.arange(mass.shape[1], dtype=jnp.int32)
    warm = (heat > 0).astype(jnp.float32)[:, None]
    block = vocabulary.argmax(jnp.log(mass) + warm * gumbel(rules, BLOCK_STREAM, block_ids[None, :]))
    ids = block[:, None] * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)[None, :]
    # times the heat, so that the argmax at heat 0 stays exact
    noisy = vocabulary.pick_block(logits, block) + heat[:, None] * gumbel(rules, TOKEN_STREAM, ids)
    return block * BLOCK + jnp.argmax(noisy, axis=1).astype(jnp.int32)


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
    # counts are whole numbers far below 2^24, and a float32 sum is quicker on a CPU
    found = bisect(scaled, jnp.maximum(k, 1).astype(jnp.float32), jnp.ones(scaled.shape, jnp.float32))
    return jnp.where(k > 0, found, -jnp.inf)


def nucleus(scaled: jax.Array, top: jax.Array, by_k: jax.Array, p: jax.Array) -> jax.Array:
    """float32[R]: smallest entry of the smallest set, among those at least ``by_k``, that has the share ``p``."""
    mass = jnp.where(scaled >= by_k[:, None], jnp.exp(scaled - top[:, None]), 0.0)
    found = bisect(scaled, p * vocabulary.row_sum(mass), mass)
    return jnp.where(p < 1, jnp.maximum(found, by_k), by_k)


def gumbel(rules: Rules, stream: int, ids: jax.Array) -> jax.Array:
    """Standard Gumbel noise float32[R, n] from seed, position, ``stream`` and ``ids`` int32[R or 1, n] alone."""
    row = mix(mix(rules.seed.astype(jnp.uint32)) + rules.position.astype(jnp.uint32) * jnp.uint32(0x9E3779B1))
    bits = mix(row[:, None] ^ (ids.astype(jnp.uint32) * jnp.uint32(0x85EBCA77) + jnp.uint32(stream)))
    return -jnp.log(-jnp.log(uniform(bits)))


def uniform(bits: jax.Array) -> jax.Array:
    """float32 above 0 and below 1 from uint32.

    Of 23 bits and a half every value is exact; with 24 the largest rounds to 1, its Gumbel noise is infinite, and that
    times the heat of a greedy row is no number.
    """
    return ((bits >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2**-23)


def mix(h: jax.Array) -> jax.Array:
    """murmur3's 32-bit finaliser: a counter hash in place of threefry, since noise is made in every step."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
