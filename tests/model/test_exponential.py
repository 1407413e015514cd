"""The short exponential, compiled as the steps compile it."""

import jax
import jax.numpy as jnp
import numpy as np

from model.exponential import exponential
from tests.compiling import SHIPPED

COMPILED = jax.jit(exponential, compiler_options=dict(SHIPPED))


def test_it_is_within_its_error_of_the_exponential_over_its_whole_range() -> None:
    x = np.linspace(-87, 0, 200_001, dtype=np.float32)
    got = np.asarray(COMPILED(jnp.asarray(x)), np.float64)
    assert np.max(np.abs(got / np.exp(x.astype(np.float64)) - 1)) < 6e-5


def test_it_is_one_at_zero_and_almost_nothing_far_below() -> None:
    ends = np.asarray(COMPILED(jnp.asarray([0.0, -1e3, -1e30, -np.inf], jnp.float32)))
    assert ends[0] == 1
    assert np.all((ends[1:] > 0) & (ends[1:] < 1.2e-38))
