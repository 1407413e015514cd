"""The Llama family: Llama (SmolLM2, Llama 3), Mistral, Qwen2 (biases), Qwen3 (head norms)."""

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


class Block(nnx.Module):
    """One transformer layer, normalised before attention and before the feed-forward."""

    def __init__(self, spec: ModelSpec, layout: HeadLayout, shards: int, dtype: str) -> None:
        self.attention_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.attention = Attention(spec, layout, shards, dtype)
        self.mlp_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.mlp = GatedMLP(spec, shards, dtype)

    def __call__(
        self, x: jax.Array, cos: jax.Array, sin: jax.Array, pool: tuple[jax.Array, jax.Array], through: Backends
    ) -> BlockOutput:
        """The layer applied to ``x`` float32[T, hidden]."""
        attended = self.attention(self.attention_norm(x), cos, sin, pool, through.attend)
        x = x + attended.out
        return BlockOutput(x + self.mlp(self.mlp_norm(x)), attended.k, attended.v)


class Llama(nnx.Module):
    """The decoder without its embedding lookup, or some of its layers.

    Embedded tokens or the hidden states of the layer before in; hidden states out, normalised behind the last layer.
    """

    def __init__(self, spec: ModelSpec, layout: HeadLayout, shards: int, vocab: int, dtype: str, layers: range) -> None:
        embedding = weight((vocab, spec.hidden_size), ("vocab", "hidden"), dtype) if layers.start == 0 else None
        if embedding is not None:
            self.embedding = embedding
        self.blocks = nnx.List([Block(spec, layout, shards, dtype) for _ in layers])
        self.ends = layers.stop == spec.num_layers
        if self.ends:
            self.final_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
            self.head = head(embedding, spec, vocab, dtype)

    def __call__(self, x: jax.Array, turns: tuple[Rotation, ...], pool: Pool, through: Backends) -> Decoded:
        """Hidden states float32[T, hidden] of embedded tokens ``x``, and the written pool."""
        cos, sin = turns[0]
        ks, vs = list(pool.k), list(pool.v)
        for i, block in enumerate(self.blocks):
            graph, values = nnx.split(block)
            x, ks[i], vs[i], _ = run_block(graph, values, x, cos, sin, ks[i], vs[i], through)
        return Decoded(self.final_norm(x) if self.ends else x, Pool(tuple(ks), tuple(vs)))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32[R, vocab] from hidden states of the rows."""
        return matmul_rows(hidden, self.head[...])
