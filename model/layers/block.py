"""One transformer layer as the architectures run it."""

from functools import partial
from typing import Any, Protocol

import jax
from flax import nnx

from model.layers.attention import Attend


class Block(Protocol):
    """A layer of an architecture."""

    def __call__(
        self, x: jax.Array, cos: jax.Array, sin: jax.Array, pool: tuple[jax.Array, jax.Array], attend: Attend
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """``x`` float32[T, hidden] after the layer, and the layer's new K and V arrays."""
        ...


@partial(jax.jit, static_argnums=0)
def run_block(
    graph: nnx.GraphDef[Any],
    values: nnx.State,
    x: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    k: jax.Array,
    v: jax.Array,
    attend: Attend,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One layer. Compiled as part of its caller; a function of its own so that layers alike are traced once."""
    block: Block = nnx.merge(graph, values)
    return block(x, cos, sin, (k, v), attend)
