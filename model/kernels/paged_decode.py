"""Decode attention over the paged pool for CUDA GPUs, in Pallas (Triton back end).

One program per row, KV head and split of the context; each walks its share of the row's pages with an online softmax,
and the splits are combined in XLA (flash decoding: Dao et al., 2023). Splitting matters when rows × KV heads are fewer
than the device's multiprocessors.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

MASKED = -1e30
MIN_GROUP = 16
"""Least rows of a tensor-core product; smaller groups of query heads are padded."""


class Launch(NamedTuple):
    """How the work is cut."""

    block_pages: int = 4
    """Pages in one turn of the loop."""
    splits: int = 8
    """Parts of a row's context, each its own program."""
    interpret: bool = False
    window: int = 0
    """Positions that a query sees, its own the last; 0 means all."""


def paged_decode(
    q: jax.Array, pool_k: jax.Array, pool_v: jax.Array, table: jax.Array, length: jax.Array, launch: Launch
) -> jax.Array:
    """One query a row over the first ``length`` positions of each row, or the last of these in the window.

    Args:
      q: float32[R, heads, head_dim], scaled.
      pool_k: bfloat16 or float32[pages, kv_heads, page_size, head_dim].
      pool_v: like ``pool_k``.
      table: int32[R, W], page numbers.
      length: int32[R]; rows of length 0 give zeros.
      launch: how the work is cut.

    Returns:
      float32[R, heads, head_dim].
    """
    rows, heads, head_dim = q.shape
    kv, page_size = pool_k.shape[1:3]
    group = heads // kv
    padded = max(MIN_GROUP, pl.next_power_of_2(group))
    turns = -(-table.shape[1] // (launch.block_pages * launch.splits))
    # every split a whole number of blocks wide
    width = turns * launch.block_pages * launch.splits
    table = jnp.pad(table, ((0, 0), (0, width - table.shape[1])))
    grouped = jnp.pad(q.reshape(rows, kv, group, head_dim), ((0, 0), (0, 0), (0, padded - group), (0, 0)))
    out, top, total = pl.pallas_call(
        partial(_kernel, page_size=page_size, launch=launch, turns=turns),
        grid=(rows, kv, launch.splits),
        in_specs=[
            pl.BlockSpec((None, None, padded, head_dim), lambda r, h, s: (r, h, 0, 0)),
            pl.BlockSpec((pool_k.shape[0], None, page_size, head_dim), lambda r, h, s: (0, h, 0, 0)),
            pl.BlockSpec((pool_v.shape[0], None, page_size, head_dim), lambda r, h, s: (0, h, 0, 0)),
            pl.BlockSpec((None, width // launch.splits), lambda r, h, s: (r, s)),
            pl.BlockSpec((1,), lambda r, h, s: (r,)),
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, padded, head_dim), lambda r, h, s: (r, h, s, 0, 0)),
            pl.BlockSpec((None, None, None, padded), lambda r, h, s: (r, h, s, 0)),
            pl.BlockSpec((None, None, None, padded), lambda r, h, s: (r, h, s, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((rows, kv, launch.splits, padded, head_dim), jnp.float32),
            jax.ShapeDtypeStruct((rows, kv, launch.splits, padded), jnp.float32),
            jax.ShapeDtypeStruct((rows, kv, launch.splits, padded), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=launch.interpret,
        name="paged_decode",
    )(grouped.astype(pool_k.dtype), pool_k, pool_v, table, length)
    best = jnp.max(top, axis=2, keepdims=True)
    share = jnp.exp(top - best)
    weight = jnp.sum(total * share, axis=2)
    whole = jnp.sum(out * share[..., None], axis=2) / jnp.maximum(weight, 1e-30)[..., None]
    return whole[:, :, :group].reshape(rows, heads, head_dim)


def paged_decode_ref(
    q: jax.Array, pool_k: jax.Array, pool_v: jax.Array, table: jax.Array, length: jax.Array, window: int = 0
) -> jax.Array:
    """What ``paged_decode`` computes, in plain array operations."""
    rows, heads, head_dim = q.shape
    kv = pool_k.shape[1]

    def gathered(pool: jax.Array) -> jax.Array:
        # shape: [R, W, kv, page, head_dim] -> [R, kv, W * page, head_dim]
        return pool[table].transpose(0, 2, 1, 3, 4).reshape(rows, kv, -1, head_dim).astype(jnp.float32)

    keys, values = gathered(pool_k), gathered(pool_v)
    scores = jnp.einsum("nkgd,nksd->nkgs", q.reshape(rows, kv, heads // kv, head_dim), keys)
    age = length[:, None] - 1 - jnp.arange(keys.shape[2])[None, :]
    seen = ((age >= 0) & (age < (window or keys.shape[2])))[:, None, None, :]
    weights = jax.nn.softmax(jnp.where(seen, scores, MASKED), axis=-1) * seen
    return jnp.einsum("nkgs,nksd->nkgd", weights, values).reshape(rows, heads, head_dim)


def _kernel(
    q_ref,
    k_ref,
    v_ref,
    table_ref,
    length_ref,
    out_ref,
    top_ref,
    total_ref,
    *,
    page_size: int,
    launch: Launch,
    turns: int,
) -> None:
    """One row, one KV head, one split."""
    block_pages = launch.block_pages
    span = block_pages * page_size
    first = pl.program_id(2) * turns * span
    length = length_ref[0]
    q = q_ref[...]
    group, head_dim = q.shape

    def turn(block: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        acc, top, total = state
        pages = table_ref[pl.ds(block * block_pages, block_pages)]
        keys = k_ref[pages].reshape(span, head_dim)
        values = v_ref[pages].reshape(span, head_dim)
        scores = plgpu.dot(q, keys.T)
        position = first + block * span + jnp.arange(span)
        seen = position < length
        if launch.window:
            seen = seen & (position >= length - launch.window)
        scores = jnp.where(jax.lax.broadcast_in_dim(seen, (group, span), (1,)), scores, MASKED)
        higher = jnp.maximum(top, scores.max(axis=-1))
        shrink = jnp.exp(top - higher)
        weights = jnp.exp(scores - higher[:, None])
        gained = plgpu.dot(weights.astype(values.dtype), values)
        return acc * shrink[:, None] + gained, higher, total * shrink + weights.sum(axis=-1)

    mine = jnp.clip(length - first, 0, turns * span)
    start = (
        jnp.zeros((group, head_dim), jnp.float32),
        jnp.full((group,), MASKED, jnp.float32),
        jnp.zeros((group,), jnp.float32),
    )
    # every block from the window's first on holds a key that is seen
    oldest = jnp.maximum(length - launch.window - first, 0) // span if launch.window else 0
    acc, top, total = jax.lax.fori_loop(oldest, pl.cdiv(mine, span), turn, start)
    out_ref[...] = acc
    top_ref[...] = top
    total_ref[...] = total
