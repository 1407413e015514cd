"""Logical axis names and the one table that maps them to mesh axes."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal

from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "stage", "expert", "tensor")
LogicalAxis = Literal["vocab", "hidden", "heads", "kv_heads", "mlp", "expert", "expert_mlp"]

MODEL_AXES = ("expert", "tensor")
"""What is not an expert is dealt over both: nothing is held or computed twice for the sake of the experts."""
RULES: Final[Mapping[LogicalAxis, tuple[str, ...]]] = MappingProxyType(
    {
        "vocab": MODEL_AXES,
        "heads": MODEL_AXES,
        "kv_heads": MODEL_AXES,
        "mlp": MODEL_AXES,
        "expert": ("expert",),
        "expert_mlp": ("tensor",),
        "hidden": (),
    }
)


def partition(axes: Sequence[LogicalAxis | None]) -> PartitionSpec:
    """Mesh axes of an array whose dimensions carry these logical names.

    Raises:
      ValueError: two dimensions would lie on the same mesh axis.
    """
    placed = [() if axis is None else RULES[axis] for axis in axes]
    used = [axis for dimension in placed for axis in dimension]
    if len(set(used)) != len(used):
        raise ValueError(f"logical axes {tuple(axes)} put two dimensions on one mesh axis: {tuple(placed)}")
    return PartitionSpec(*(dimension or None for dimension in placed))


def named(mesh: Mesh, axes: Sequence[LogicalAxis | None]) -> NamedSharding:
    """``partition(axes)`` on a mesh."""
    return NamedSharding(mesh, partition(axes))
