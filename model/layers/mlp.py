"""Gated feed-forward (Shazeer, 2020: SwiGLU, GeGLU), gate and up fused in one product."""

import jax
from flax import nnx

from model.layers.linear import matmul
from model.layers.parameter import weight
from model.spec import ModelSpec


class GatedMLP(nnx.Module):
    """``down(activation(gate(x)) * up(x))``.

    ``gate_up`` is ``[hidden, shards * 2 * mlp / shards]``: each shard holds its own gate columns, then its up columns.
    """

    def __init__(self, spec: ModelSpec, shards: int, dtype: str) -> None:
        self.shards = shards
        self.activation = spec.activation
        self.width = spec.intermediate_size // shards
        self.gate_up = weight((spec.hidden_size, 2 * spec.intermediate_size), ("hidden", "mlp"), dtype)
        self.down = weight((spec.intermediate_size, spec.hidden_size), ("mlp", "hidden"), dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``x`` is [T, hidden]; so is what comes back."""
        # shape: [T, shards, 2, width]; the split stays inside a shard
        both = matmul(x, self.gate_up[...]).reshape(x.shape[0], self.shards, 2, self.width)
        gate, up = both[:, :, 0], both[:, :, 1]
        inner = (jax.nn.silu(gate) if self.activation == "silu" else jax.nn.gelu(gate, approximate=True)) * up
        return matmul(inner.reshape(x.shape[0], self.shards * self.width), self.down[...])
