"""Matrix products with float32 results."""

import jax
import jax.numpy as jnp


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x [T, in] @ w [in, out]`` as float32; ``x`` is cast to the weight's dtype.

    A bfloat16 result costs 1.5 to 3 times more than a float32 one on XLA's CPU back end.
    """
    return jax.lax.dot_general(x.astype(w.dtype), w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def matmul_rows(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x [T, in] @ w[out, in].T`` as float32."""
    return jax.lax.dot_general(x.astype(w.dtype), w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def weights_first(tokens: int) -> bool:
    """Whether a chain of products is quicker with the weights as left operands, ``w[out, in] @ x[in, T]``.

    XLA's CPU back end packs the right operand anew in every call: of few tokens that is little, of weights it is not
    (0.94 of a step of 32 rows). Below 16 tokens its kernels for few rows are better; from 256 on packing is small.
    """
    return jax.default_backend() == "cpu" and 16 <= tokens <= 128


def matmul_columns(w: jax.Array, x: jax.Array, along: int) -> jax.Array:
    """``w [out, in]`` times ``x``, whose dimension ``along`` is ``in`` and whose other is T, as float32[out, T].

    Turning ``x`` beforehand instead makes XLA turn the product: nearly twice the time of a step.
    """
    return jax.lax.dot_general(w, x.astype(w.dtype), (((1,), (along,)), ((), ())), preferred_element_type=jnp.float32)
