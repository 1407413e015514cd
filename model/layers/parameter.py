"""Weights declared once: shape, dtype, logical axes."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from sharding.axes import LogicalAxis


def weight(shape: Sequence[int], axes: Sequence[LogicalAxis | None], dtype: str) -> nnx.Param:
    """A parameter of this shape whose dimensions carry these logical axes.

    Modules are built under ``nnx.eval_shape``, so the zeros are never allocated; values come from a checkpoint.
    """
    assert len(shape) == len(axes), "one logical axis a dimension"
    return nnx.Param(jnp.zeros(shape, dtype), logical=tuple(axes))
