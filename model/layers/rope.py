"""Rotary position embeddings (Su et al., 2021), with Llama 3's frequency scaling."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from model.spec import ModelSpec, RopeScaling

Rotation = tuple[jax.Array, jax.Array]
"""Cosines and signed sines of a step's positions; see ``rotations``."""


def frequencies(spec: ModelSpec) -> tuple[np.ndarray, ...]:
    """Inverse wavelengths, float32[head_dim / 2], in radians a position.

    Those of the layers that see everything, then, where they have a base of their own, those of the sliding layers.
    """
    exponent = np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim
    plain = spec.rope_theta**-exponent
    whole = plain if spec.rope_scaling is None else scaled(plain, spec.rope_scaling)
    if spec.local_rope_theta is None:
        return (whole.astype(np.float32),)
    return whole.astype(np.float32), (spec.local_rope_theta**-exponent).astype(np.float32)


def scaled(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Stretch long wavelengths by ``factor``, keep short ones, blend between (Llama 3.1)."""
    wavelength = 2 * math.pi / plain
    low = scaling.original_context / scaling.low_freq_factor
    high = scaling.original_context / scaling.high_freq_factor
    smooth = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * plain / scaling.factor + smooth * plain
    return np.where(wavelength > low, plain / scaling.factor, np.where(wavelength < high, plain, blended))


def rotations(position: jax.Array, inverse: np.ndarray) -> Rotation:
    """Cosines and signed sines, float32[T, 2, head_dim / 2], of ``position`` int32[T], for the head's two halves."""
    angle = position.astype(jnp.float32)[:, None] * jnp.asarray(inverse)[None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([cos, cos], axis=1), jnp.stack([-sin, sin], axis=1)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate ``x`` float32[T, heads, head_dim], the halves of the head paired as Hugging Face pairs them.

    The halves change places by a reversed axis: XLA's CPU back end does not vectorise a concatenation (8.5 of 78 ms in
    a step of 64 tokens).
    """
    # shape: [T, heads, 2, head_dim / 2]
    halves = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
    turned = halves * cos[:, None] + jnp.flip(halves, axis=-2) * sin[:, None]
    return turned.reshape(x.shape)
