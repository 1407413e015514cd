"""Every token through the feed-forwards of its own experts, on one shard and without a dense expansion.

The (token, expert) pairs are sorted by expert, so that the rows of an expert lie side by side.
"""

from functools import cache
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp

from model.layers.linear import matmul
from model.spec import ExpertsKind

TILES: Final = (2, 8, 32)
"""Rows of one product of ``through_tiles``.

On two CPU cores (docs/experts.md), milliseconds for 32 tokens with 8 of 32 experts each, tiles of 2, 8, 16, 32 rows:
47, 24, 22, 31; for 256 tokens, tiles of 16, 32, 64: 86, 75, 83; for 256 tokens with 8 of 128, tiles of 8, 16, 32: 205,
156, 135. ``ragged_dot`` takes eight times as long and more.
"""


class Pairs(NamedTuple):
    """The pairs of a step whose expert is on this shard, in the order of the experts; the others follow."""

    token: jax.Array
    """int32[N]."""
    share: jax.Array
    """float32[N]: what the expert counts for the token."""
    begin: jax.Array
    """int32[experts]: where the rows of each begin."""
    count: jax.Array
    """int32[experts]."""


def sort_pairs(chosen: jax.Array, share: jax.Array, experts: int) -> Pairs:
    """Sort ``chosen`` int32[T, k], experts of this shard or ``experts`` for what is not its own, with their shares."""
    flat = chosen.reshape(-1)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    edges = jnp.searchsorted(flat[order], jnp.arange(experts + 1, dtype=jnp.int32)).astype(jnp.int32)
    return Pairs(order // chosen.shape[1], share.reshape(-1)[order], edges[:-1], edges[1:] - edges[:-1])


def values(stored: jax.Array) -> jax.Array:
    """Weights of experts as numbers: uint16 are the bits of bfloat16."""
    return jax.lax.bitcast_convert_type(stored, jnp.bfloat16) if stored.dtype == jnp.uint16 else stored


def gated(x: jax.Array, gate_up: jax.Array, down: jax.Array) -> jax.Array:
    """``down(silu(gate(x)) * up(x))`` of one shard: gate columns first."""
    gate, up = jnp.split(matmul(x, gate_up), 2, axis=1)
    return matmul(jax.nn.silu(gate) * up, down)


def through_tiles(x: jax.Array, pairs: Pairs, gate_up: jax.Array, down: jax.Array) -> jax.Array:
    """float32[T, hidden]: a loop over tiles of rows of one expert, as many as the step needs.

    ``x`` is float32[T, hidden], ``gate_up`` [experts, hidden, 2 * width], ``down`` [experts, width, hidden].
    """
    tile = tile_rows(pairs.token.shape[0], gate_up.shape[0])
    tiles = (pairs.count + tile - 1) // tile
    ends = jnp.cumsum(tiles)
    token, share = jnp.pad(pairs.token, (0, tile)), jnp.pad(pairs.share, (0, tile))

    def one(index: jax.Array, out: jax.Array) -> jax.Array:
        expert = jnp.searchsorted(ends, index, side="right")
        row = (index - ends[expert] + tiles[expert]) * tile
        at = pairs.begin[expert] + row
        rows = jax.lax.dynamic_slice_in_dim(token, at, tile)
        own = row + jnp.arange(tile, dtype=jnp.int32) < pairs.count[expert]
        weight = jnp.where(own, jax.lax.dynamic_slice_in_dim(share, at, tile), 0.0)
        through = gated(x[rows], values(gate_up[expert]), values(down[expert]))
        return out.at[rows].add(through * weight[:, None])

    return jax.lax.fori_loop(0, ends[-1], one, jnp.zeros(x.shape, jnp.float32))


def tile_rows(pairs: int, experts: int) -> int:
    """The smallest tile that holds an expert's rows where all experts take equally many, or the largest tile."""
    return next((tile for tile in TILES if tile * experts >= pairs), TILES[-1])


def through_ragged_dot(x: jax.Array, pairs: Pairs, gate_up: jax.Array, down: jax.Array) -> jax.Array:
    """As ``through_tiles``, by XLA's own grouped product."""
    total = jnp.sum(pairs.count)
    own = jnp.arange(pairs.token.shape[0], dtype=jnp.int32) < total

    def product(rows: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(rows.astype(weights.dtype), weights, pairs.count, preferred_element_type=jnp.float32)

    gate, up = jnp.split(product(x[pairs.token], values(gate_up)), 2, axis=1)
    through = product(jax.nn.silu(gate) * up, values(down))
    # what lies behind the last group is whatever the back end leaves there
    weighted = jnp.where(own[:, None], through * pairs.share[:, None], 0.0)
    return jnp.zeros(x.shape, jnp.float32).at[pairs.token].add(weighted)


@cache
def grouped_product() -> ExpertsKind:
    """What this platform computes without a dense expansion: ``ragged`` where a compiled ``ragged_dot`` shows none.

    jax 0.10.2 expands it on CPUs and on GPUs: every row is multiplied by the weights of every expert.
    """
    experts, rows, size = 16, 64, 32
    left = jax.ShapeDtypeStruct((rows, size), jnp.float32)
    right = jax.ShapeDtypeStruct((experts, size, size), jnp.float32)
    sizes = jax.ShapeDtypeStruct((experts,), jnp.int32)
    cost = jax.jit(jax.lax.ragged_dot).lower(left, right, sizes).compile().cost_analysis()
    needed = 2 * rows * size * size
    flops = (cost or {}).get("flops", needed * experts)
    return "ragged" if flops < needed * experts / 2 else "tiles"
