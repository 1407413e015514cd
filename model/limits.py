"""What the device reaches in the simplest programs: the yardstick of the compiled steps."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from model.spec import Dtype

COPY_BYTES = 2**28
PRODUCT_SIZE = 2048


@dataclass(slots=True, frozen=True)
class Limits:
    """What one device reaches, measured now."""

    device_kind: str
    bytes_per_s: float
    flops_per_s: float


def measure_limits(dtype: Dtype) -> Limits:
    """Bytes a second of reading and writing a large array; operations a second of a large product in ``dtype``."""
    # in place, so that no fresh memory is touched
    sweep = jax.jit(lambda x: x + 1, donate_argnums=0)
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32).astype(x.dtype))
    array, square = jnp.ones((COPY_BYTES // 4,), jnp.float32), jnp.ones((PRODUCT_SIZE, PRODUCT_SIZE), dtype)
    kind = jax.devices()[0].device_kind
    return Limits(kind, 2 * COPY_BYTES / best(sweep, array), 2 * PRODUCT_SIZE**3 / best(product, square))


def best(run: Callable[[jax.Array], jax.Array], value: jax.Array) -> float:
    """Seconds of the fastest of five runs, each on the last one's result."""
    value = run(value).block_until_ready()
    times: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        value = run(value).block_until_ready()
        times.append(time.perf_counter() - began)
    return min(times)
