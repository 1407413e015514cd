"""Logical axis names and the one table that maps them to mesh axes."""

from collections.abc import Sequence
from typing import Literal

from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "stage", "expert", "tensor")
LogicalAxis = Literal["vocab", "hidden", "heads", "kv_heads", "mlp"]

RULES: dict[LogicalAxis, str | None] = {
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "hidden": None,
}


def partition(axes: Sequence[LogicalAxis | None]) -> PartitionSpec:
    """Mesh axes of an array whose dimensions carry these logical names.

    Raises:
      ValueError: two dimensions would lie on the same mesh axis.
    """
    placed = [None if axis is None else RULES[axis] for axis in axes]
    used = [axis for axis in placed if axis is not None]
    if len(set(used)) != len(used):
        raise ValueError(f"logical axes {tuple(axes)} put two dimensions on one mesh axis: {tuple(placed)}")
    return PartitionSpec(*placed)


def named(mesh: Mesh, axes: Sequence[LogicalAxis | None]) -> NamedSharding:
    """``partition(axes)`` on a mesh."""
    return NamedSharding(mesh, partition(axes))
