"""The one donated value that every step takes and gives back."""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from model.interface import Shapes
from model.kv_pool import POOL_AXES, Pool, stored
from model.registry import Blueprint
from model.vocabulary import padded_vocab
from sharding.axes import named
from sharding.mesh import model_shards


class Counts(NamedTuple):
    """Penalty state by slot: how often each token occurs."""

    prompt: jax.Array
    """int16[slots, padded vocab], sharded over the vocabulary."""
    output: jax.Array
    """int16[slots, padded vocab]."""


class Sampled(NamedTuple):
    """What the head keeps of the tokens it sampled."""

    last_token: jax.Array
    """int32[slots]: the last one of each slot; slot 0 is padding."""
    counts: Counts


class DeviceState(NamedTuple):
    """What lives on the devices of a stage between steps."""

    pool: Pool
    sampled: Sampled | None
    """None where there is no head."""
    routed: jax.Array | None = None
    """uint32[layers with experts, experts]: tokens that each expert took, modulo 2**32; None without such layers."""


def state_shapes(model: Blueprint, shapes: Shapes, num_pages: int, window_pages: int = 0) -> DeviceState:
    """The state as shapes with shardings; both numbers count page 0 of their group too."""
    assert bool(window_pages) == bool(shapes.window), "the window group has pages exactly where there is one"
    spec, mesh, slots = model.spec, model.mesh, shapes.max_rows + 1

    def of_layer(count: int) -> jax.Array:
        pages = (count, model.layout.num_kv_heads, shapes.page_size, spec.head_dim)
        return planned(pages, stored(model.dtype, model.attention), named(mesh, POOL_AXES))

    full, sliding = of_layer(num_pages), of_layer(window_pages)
    layers = tuple(sliding if shapes.window and spec.window(i) else full for i in model.layers)
    vocab = padded_vocab(spec.vocab_size, model_shards(mesh))
    counts = planned((slots, vocab), jnp.int16, named(mesh, (None, "vocab")))
    sampled = Sampled(planned((slots,), jnp.int32, named(mesh, (None,))), Counts(counts, counts))
    return DeviceState(Pool(layers, layers), sampled if model.last else None, routed_shape(model))


def routed_shape(model: Blueprint) -> jax.Array | None:
    """``DeviceState.routed`` as a shape."""
    experts, layers = model.spec.experts, len(set(model.spec.sparse_layers) & set(model.layers))
    if experts is None or not layers:
        return None
    return planned((layers, experts.count), jnp.uint32, named(model.mesh, (None, "expert")))


def planned(shape: tuple[int, ...], dtype: DTypeLike, sharding: NamedSharding) -> jax.Array:
    """A shape that stands where an array will; typed as that array, so that one ``DeviceState`` describes both."""
    return cast(jax.Array, jax.ShapeDtypeStruct(shape, dtype, sharding=sharding))


def allocate(shapes: DeviceState) -> DeviceState:
    """Zeroed arrays of these shapes, each made where it lives."""

    def zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)

    return jax.tree.map(zeros, shapes)
