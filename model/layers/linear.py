"""Matrix products with float32 results."""

import jax
import jax.numpy as jnp


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x [T, in] @ w [in, out]`` as float32; ``x`` is cast to the weight's dtype.

    A bfloat16 result costs 1.5 to 3 times more than a float32 one on XLA's CPU back end.
    """
    return jax.lax.dot_general(x.astype(w.dtype), w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
