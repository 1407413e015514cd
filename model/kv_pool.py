"""The paged K and V arrays: their shape, and writing one step's keys and values.

One K and one V array a layer, ``[pages, kv_heads, page_size, head_dim]``. bfloat16 is kept as its bits, uint16: XLA's
CPU back end converts a whole bfloat16 operand to float32 around a scatter (138 ms against 15 ms for a decode step of
SmolLM2-135M, gathers converting it as well then).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.spec import AttentionKind, Dtype


class Pool(NamedTuple):
    """K and V arrays by layer."""

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


POOL_AXES = (None, "kv_heads", None, None)


def stored(dtype: Dtype, attention: AttentionKind) -> jnp.dtype:
    """Storage dtype of keys and values; a kernel reads plain elements."""
    return jnp.dtype(jnp.uint16 if dtype == "bfloat16" and attention == "xla" else dtype)


def element_type(storage: jnp.dtype) -> jnp.dtype:
    """The dtype of the values that ``storage`` holds."""
    return jnp.dtype(jnp.bfloat16) if storage == jnp.uint16 else storage


def to_bits(x: jax.Array, storage: jnp.dtype) -> jax.Array:
    """Values as the pool stores them."""
    if storage == jnp.uint16:
        return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    return x.astype(storage)


def from_bits(stored: jax.Array) -> jax.Array:
    """What is stored as bfloat16 or float32 values."""
    return jax.lax.bitcast_convert_type(stored, jnp.bfloat16) if stored.dtype == jnp.uint16 else stored


def write(layer: jax.Array, pages: jax.Array, offsets: jax.Array, values: jax.Array) -> jax.Array:
    """Store ``values [T, kv_heads, head_dim]`` at ``(pages[t], :, offsets[t])``; padding goes to page 0."""
    return layer.at[pages, :, offsets].set(to_bits(values, layer.dtype))
