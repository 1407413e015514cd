"""Root-mean-square normalisation (Zhang and Sennrich, 2019)."""

import jax
import jax.numpy as jnp
from flax import nnx

from model.layers.parameter import weight


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Normalise the last axis of float32 ``x`` and scale it."""
    variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(variance + eps) * scale


class RMSNorm(nnx.Module):
    """``rms_norm`` with its own scale, kept in float32."""

    def __init__(self, size: int, eps: float) -> None:
        self.scale = weight((size,), (None,), "float32")
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last axis of float32 ``x``."""
        # the scale has x's last dimension only; broadcast it by hand, rank promotion is an error here
        return rms_norm(x, self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,)), self.eps)
