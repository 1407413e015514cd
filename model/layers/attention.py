"""Grouped-query attention over the paged pool."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from model.layers.linear import matmul
from model.layers.norm import RMSNorm
from model.layers.parameter import weight
from model.layers.rope import rotate
from model.spec import ModelSpec
from sharding.heads import HeadLayout


class AttendedLayer(NamedTuple):
    """What a back end returns for one layer."""

    out: jax.Array
    """float32[T, heads, head_dim]."""
    k: jax.Array
    v: jax.Array


class Attend(Protocol):
    """Write this step's keys and values into one layer's pool, then attend over it."""

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, pool_k: jax.Array, pool_v: jax.Array, window: int
    ) -> AttendedLayer:
        """``q`` float32[T, heads, head_dim] (scaled), ``k`` and ``v`` float32[T, kv_heads, head_dim].

        A token sees its last ``window`` predecessors, itself included; 0 means all.
        """
        ...


class Attention(nnx.Module):
    """Projections, head norms, rotation; the attending itself is the back end's.

    ``qkv`` is ``[hidden, shards * (heads + 2 * kv_heads) / shards * head_dim]``: each shard holds its query columns,
    then its key columns, then its value columns.
    """

    def __init__(self, spec: ModelSpec, layout: HeadLayout, shards: int, dtype: str, window: int = 0) -> None:
        self.shards, self.head_dim = shards, spec.head_dim
        self.window, self.scale = window, (spec.query_scalar or spec.head_dim) ** -0.5
        self.heads, self.kv_heads = layout.num_heads // shards, layout.num_kv_heads // shards
        width = (layout.num_heads + 2 * layout.num_kv_heads) * spec.head_dim
        self.qkv = weight((spec.hidden_size, width), ("hidden", "heads"), dtype)
        self.qkv_bias = weight((width,), ("heads",), "float32") if spec.qkv_bias else None
        self.q_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else None
        self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else None
        self.out = weight((layout.num_heads * spec.head_dim, spec.hidden_size), ("heads", "hidden"), dtype)

    def project(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (scaled), keys and values of ``x`` [T, hidden], rotated."""
        tokens, per_shard = x.shape[0], self.heads + 2 * self.kv_heads
        flat = matmul(x, self.qkv[...])
        if self.qkv_bias is not None:
            flat = flat + self.qkv_bias[...][None, :]
        # shape: [T, shards, heads + 2 kv_heads, head_dim]; the split stays inside a shard
        packed = flat.reshape(tokens, self.shards, per_shard, self.head_dim)
        q = packed[:, :, : self.heads].reshape(tokens, -1, self.head_dim)
        k = packed[:, :, self.heads : self.heads + self.kv_heads].reshape(tokens, -1, self.head_dim)
        v = packed[:, :, self.heads + self.kv_heads :].reshape(tokens, -1, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, cos, sin) * self.scale, rotate(k, cos, sin), v

    def __call__(
        self, x: jax.Array, cos: jax.Array, sin: jax.Array, pool: tuple[jax.Array, jax.Array], attend: Attend
    ) -> AttendedLayer:
        """Attention's contribution to ``x`` [T, hidden], and the layer's new pool."""
        q, k, v = self.project(x, cos, sin)
        attended = attend(q, k, v, *pool, window=self.window)
        flat = attended.out.reshape(x.shape[0], -1)
        return AttendedLayer(matmul(flat, self.out[...]), attended.k, attended.v)


def neutral(dtype: jnp.dtype) -> float:
    """A score that no softmax notices, finite so that wholly masked rows stay finite."""
    return float(jnp.finfo(dtype).min) / 2
