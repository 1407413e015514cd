"""Mixtures of experts on the Llama family: Mixtral, Qwen2-MoE (a shared expert), Qwen3-MoE (head norms)."""

import jax
import jax.numpy as jnp
from flax import nnx

from model.arch.llama import Block
from model.kv_pool import Pool
from model.layers.attention import Attention
from model.layers.block import Backends, BlockOutput, Decoded, run_block
from model.layers.head import head
from model.layers.linear import matmul_rows
from model.layers.norm import RMSNorm
from model.layers.parameter import weight
from model.layers.rope import Rotation
from model.layers.sparse import SparseMLP
from model.spec import Experts, ModelSpec
from sharding.heads import HeadLayout


class SparseBlock(nnx.Module):
    """One transformer layer whose feed-forward is a mixture of experts."""

    def __init__(self, spec: ModelSpec, experts: Experts, layout: HeadLayout, shards: int, dtype: str) -> None:
        self.attention_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.attention = Attention(spec, layout, shards, dtype)
        self.mlp_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.experts = SparseMLP(spec.hidden_size, experts, dtype)

    def __call__(
        self, x: jax.Array, cos: jax.Array, sin: jax.Array, pool: tuple[jax.Array, jax.Array], through: Backends
    ) -> BlockOutput:
        """The layer applied to ``x`` float32[T, hidden]."""
        attended = self.attention(self.attention_norm(x), cos, sin, pool, through.attend)
        x = x + attended.out
        mixed = self.experts(self.mlp_norm(x), through.dispatch)
        return BlockOutput(x + mixed.out, attended.k, attended.v, mixed.routed)


class Mixture(nnx.Module):
    """The decoder without its embedding lookup, or some of its layers.

    Embedded tokens or the hidden states of the layer before in; hidden states out, normalised behind the last layer.
    """

    def __init__(self, spec: ModelSpec, layout: HeadLayout, shards: int, vocab: int, dtype: str, layers: range) -> None:
        experts, sparse = spec.experts, spec.sparse_layers
        assert experts is not None, "a mixture has experts"
        embedding = weight((vocab, spec.hidden_size), ("vocab", "hidden"), dtype) if layers.start == 0 else None
        if embedding is not None:
            self.embedding = embedding
        self.blocks = nnx.List(
            [
                SparseBlock(spec, experts, layout, shards, dtype) if i in sparse else Block(spec, layout, shards, dtype)
                for i in layers
            ]
        )
        self.ends = layers.stop == spec.num_layers
        if self.ends:
            self.final_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
            self.head = head(embedding, spec, vocab, dtype)

    def __call__(self, x: jax.Array, turns: tuple[Rotation, ...], pool: Pool, through: Backends) -> Decoded:
        """Hidden states float32[T, hidden] of embedded tokens ``x``, the written pool, and who took the tokens."""
        cos, sin = turns[0]
        ks, vs = list(pool.k), list(pool.v)
        routed: list[jax.Array] = []
        for i, block in enumerate(self.blocks):
            graph, values = nnx.split(block)
            x, ks[i], vs[i], took = run_block(graph, values, x, cos, sin, ks[i], vs[i], through)
            routed += [] if took is None else [took]
        sums = jnp.stack(routed) if routed else None
        return Decoded(self.final_norm(x) if self.ends else x, Pool(tuple(ks), tuple(vs)), sums)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32[R, vocab] from hidden states of the rows."""
        return matmul_rows(hidden, self.head[...])
