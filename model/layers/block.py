"""One transformer layer as the architectures run it."""

from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx

from model.kv_pool import Pool
from model.layers.attention import Attend
from model.layers.sparse import Dispatch


class Backends(NamedTuple):
    """What a step gives every layer to compute with."""

    attend: Attend
    dispatch: Dispatch


class BlockOutput(NamedTuple):
    """What a layer gives back."""

    x: jax.Array
    """float32[T, hidden]."""
    k: jax.Array
    """The layer's new K array; ``v`` is the other one."""
    v: jax.Array
    routed: jax.Array | None = None
    """uint32[experts]: tokens that each expert took; None where there are no experts."""


class Decoded(NamedTuple):
    """What an architecture gives back of a step."""

    hidden: jax.Array
    """float32[T, hidden], normalised."""
    pool: Pool
    routed: jax.Array | None = None
    """uint32[layers with experts, experts]; None for a dense model."""


class Block(Protocol):
    """A layer of an architecture."""

    def __call__(
        self, x: jax.Array, cos: jax.Array, sin: jax.Array, pool: tuple[jax.Array, jax.Array], through: Backends
    ) -> BlockOutput:
        """The layer applied to ``x`` float32[T, hidden]."""
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
    through: Backends,
) -> BlockOutput:
    """One layer. Compiled as part of its caller; a function of its own so that layers alike are traced once."""
    block: Block = nnx.merge(graph, values)
    return block(x, cos, sin, (k, v), through)
