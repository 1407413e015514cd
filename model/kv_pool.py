"""The paged K and V arrays: their shape, and writing one step's keys and values.

One K and one V array a layer, ``[pages, kv_heads, page_size, words]``. bfloat16 is kept as uint32 words of two
elements: XLA's CPU back end converts a whole bfloat16 operand to float32 around a gather or scatter (138 ms against
15 ms for a decode step of SmolLM2-135M), and a GPU scatter moves one element a thread.
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


def stored(shape: tuple[int, ...], dtype: Dtype, attention: AttentionKind) -> tuple[tuple[int, ...], jnp.dtype]:
    """Shape and storage dtype of an array of keys or values ``[..., head_dim]``; a kernel reads plain elements."""
    if dtype == "bfloat16" and attention == "xla":
        return (*shape[:-1], shape[-1] // 2), jnp.dtype(jnp.uint32)
    return shape, jnp.dtype(dtype)


def element_type(storage: jnp.dtype) -> jnp.dtype:
    """The dtype of the values that ``storage`` holds."""
    return jnp.dtype(jnp.bfloat16) if storage == jnp.uint32 else storage


def to_words(x: jax.Array, storage: jnp.dtype) -> jax.Array:
    """Values ``[..., head_dim]`` as the pool stores them."""
    if storage == jnp.uint32:
        pairs = x.astype(jnp.bfloat16).reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
        return jax.lax.bitcast_convert_type(pairs, jnp.uint32)
    return x.astype(storage)


def from_words(words: jax.Array) -> jax.Array:
    """Stored elements back as bfloat16 or float32 values ``[..., head_dim]``."""
    if words.dtype == jnp.uint32:
        pairs = jax.lax.bitcast_convert_type(words, jnp.bfloat16)
        return pairs.reshape(*words.shape[:-1], words.shape[-1] * 2)
    return words


def write(layer: jax.Array, pages: jax.Array, offsets: jax.Array, values: jax.Array) -> jax.Array:
    """Store ``values [T, kv_heads, head_dim]`` at ``(pages[t], :, offsets[t])``; padding goes to page 0."""
    return layer.at[pages, :, offsets].set(to_words(values, layer.dtype))
