"""Token embedding, sharded over the vocabulary."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from sharding.axes import MODEL_AXES, partition
from sharding.mesh import model_shards


def gather_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """``table[ids]`` as float32, moving bfloat16 as its bits (see ``model.kv_pool``)."""
    if table.dtype == jnp.bfloat16:
        bits = jax.lax.bitcast_convert_type(table, jnp.uint16)[ids].astype(jnp.uint32) << 16
        return jax.lax.bitcast_convert_type(bits, jnp.float32)
    return table[ids].astype(jnp.float32)


def embed(table: jax.Array, ids: jax.Array, mesh: Mesh) -> jax.Array:
    """Rows ``ids`` int32[T] of a vocabulary-sharded table, float32[T, hidden]: one all-reduce."""

    def local(shard: jax.Array, ids: jax.Array) -> jax.Array:
        size = shard.shape[0]
        at = ids - jax.lax.axis_index(MODEL_AXES) * size
        inside = (at >= 0) & (at < size)
        rows = gather_rows(shard, jnp.where(inside, at, 0))
        return jax.lax.psum(jnp.where(inside[:, None], rows, 0.0), MODEL_AXES)

    if model_shards(mesh) == 1:
        return gather_rows(table, ids)
    return jax.shard_map(
        local, mesh=mesh, in_specs=(partition(("vocab", None)), PartitionSpec()), out_specs=PartitionSpec()
    )(table, ids)
