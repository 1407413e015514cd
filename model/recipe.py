"""What programs are compiled from."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from model.batch import Program, buffer_size
from model.device_state import DeviceState
from model.interface import Shapes
from model.registry import Blueprint
from model.steps import build_step, jitted, set_counts
from sharding.axes import named


@dataclass(slots=True, frozen=True)
class Recipe:
    """What the programs of one stage are compiled from: shapes only, no values."""

    model: Blueprint
    shapes: Shapes
    state: DeviceState
    """As shapes with shardings."""
    section_layers: int = 0
    """Of the sections of its steps, see ``model.sections``; 0: every step is one program."""

    def lower(self, program: Program) -> jax.stages.Lowered:
        """Trace and lower one step; a stage without head knows lean ones only."""
        leaves = tuple(self.model.leaves.values())
        buffer = jax.ShapeDtypeStruct((buffer_size(program, self.shapes),), jnp.int32)
        return jitted(build_step(program, self.model, self.shapes), donated=1).lower(
            leaves, self.state, buffer, *self._from_others(program)
        )

    def _from_others(self, program: Program) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What a step takes that comes from another stage."""
        model, whole = self.model, named(self.model.mesh, ())
        if model.first and model.last:
            return ()
        if model.first:
            return (jax.ShapeDtypeStruct((self.shapes.max_rows + 1,), jnp.int32, sharding=whole),)
        return (jax.ShapeDtypeStruct((program.size, model.spec.hidden_size), jnp.float32, sharding=whole),)

    def compile_counts(self, size: int) -> jax.stages.Compiled:
        """The little program that rebuilds one slot's penalty counts from ``size`` entries."""
        ids, one = jax.ShapeDtypeStruct((size,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
        return jitted(set_counts, donated=0).lower(self.state, one, ids, ids, ids).compile()
