"""Gemma 3, text only (Gemma Team, 2025): layers with a sliding window between layers that see everything."""

import jax
from flax import nnx

from model.kv_pool import Pool
from model.layers.attention import Attention
from model.layers.block import Backends, BlockOutput, Decoded, run_block
from model.layers.head import head
from model.layers.linear import matmul_rows
from model.layers.mlp import GatedMLP
from model.layers.norm import RMSNorm
from model.layers.parameter import weight
from model.layers.rope import Rotation
from model.spec import ModelSpec
from sharding.heads import HeadLayout


class Gemma3Block(nnx.Module):
    """One transformer layer, normalised before and behind attention, before and behind the feed-forward."""

    def __init__(self, spec: ModelSpec, layout: HeadLayout, shards: int, dtype: str, window: int) -> None:
        self.attention_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.attention = Attention(spec, layout, shards, dtype, window)
        self.after_attention_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.mlp_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.mlp = GatedMLP(spec, shards, dtype)
        self.after_mlp_norm = RMSNorm(spec.hidden_size, spec.norm_eps)

    def __call__(
        self, x: jax.Array, cos: jax.Array, sin: jax.Array, pool: tuple[jax.Array, jax.Array], through: Backends
    ) -> BlockOutput:
        """The layer applied to ``x`` float32[T, hidden]."""
        attended = self.attention(self.attention_norm(x), cos, sin, pool, through.attend)
        x = x + self.after_attention_norm(attended.out)
        return BlockOutput(x + self.after_mlp_norm(self.mlp(self.mlp_norm(x))), attended.k, attended.v)


class Gemma3(nnx.Module):
    """The decoder without its embedding lookup, or some of its layers.

    Embedded tokens or the hidden states of the layer before in; hidden states out, normalised behind the last layer.
    """

    def __init__(self, spec: ModelSpec, layout: HeadLayout, shards: int, vocab: int, dtype: str, layers: range) -> None:
        self.embedding_scale = spec.embedding_scale if layers.start == 0 else 1.0
        embedding = weight((vocab, spec.hidden_size), ("vocab", "hidden"), dtype) if layers.start == 0 else None
        if embedding is not None:
            self.embedding = embedding
        self.blocks = nnx.List([Gemma3Block(spec, layout, shards, dtype, spec.window(i)) for i in layers])
        self.ends = layers.stop == spec.num_layers
        if self.ends:
            self.final_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
            self.head = head(embedding, spec, vocab, dtype)

    def __call__(self, x: jax.Array, turns: tuple[Rotation, ...], pool: Pool, through: Backends) -> Decoded:
        """Hidden states float32[T, hidden] of embedded tokens ``x``, and the written pool.

        ``turns`` are the rotations of the layers that see everything and, last, those of the sliding layers.
        """
        x = x * self.embedding_scale
        ks, vs = list(pool.k), list(pool.v)
        for i, block in enumerate(self.blocks):
            cos, sin = turns[-1] if block.attention.window else turns[0]
            graph, values = nnx.split(block)
            x, ks[i], vs[i], _ = run_block(graph, values, x, cos, sin, ks[i], vs[i], through)
        return Decoded(self.final_norm(x) if self.ends else x, Pool(tuple(ks), tuple(vs)))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32[R, vocab] from hidden states of the rows."""
        return matmul_rows(hidden, self.head[...])
