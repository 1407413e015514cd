"""Gated feed-forward (Shazeer, 2020: SwiGLU, GeGLU), gate and up fused in one product."""

import jax
from flax import nnx

from model.layers.linear import matmul_columns, matmul_rows, weights_first
from model.layers.parameter import weight
from model.spec import ModelSpec


class GatedMLP(nnx.Module):
    """``down(activation(gate(x)) * up(x))``.

    ``gate_up`` is ``[shards * 2 * mlp / shards, hidden]``: each shard holds its own gate rows, then its up rows.
    """

    def __init__(self, spec: ModelSpec, shards: int, dtype: str) -> None:
        self.shards = shards
        self.activation = spec.activation
        self.width = spec.intermediate_size // shards
        self.gate_up = weight((2 * spec.intermediate_size, spec.hidden_size), ("mlp", "hidden"), dtype)
        self.down = weight((spec.hidden_size, spec.intermediate_size), ("hidden", "mlp"), dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``x`` is [T, hidden]; so is what comes back."""
        tokens = x.shape[0]
        # in both cases the split of gate and up stays inside a shard
        if weights_first(tokens):
            both = matmul_columns(self.gate_up[...], x, 1).reshape(self.shards, 2, self.width, tokens)
            inner = self.inner(both[:, 0], both[:, 1]).reshape(self.shards * self.width, tokens)
            # without the barrier XLA turns the product around again
            return jax.lax.optimization_barrier(matmul_columns(self.down[...], inner, 0)).T
        both = matmul_rows(x, self.gate_up[...]).reshape(tokens, self.shards, 2, self.width)
        inner = self.inner(both[:, :, 0], both[:, :, 1]).reshape(tokens, self.shards * self.width)
        return matmul_rows(inner, self.down[...])

    def inner(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """What goes into ``down``."""
        return (jax.nn.silu(gate) if self.activation == "silu" else jax.nn.gelu(gate, approximate=True)) * up
