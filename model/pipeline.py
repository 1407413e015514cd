"""The stages of a model at work: weights and state of each, and what steps hand from one to the next."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from model.batch import Program, buffer_size, pack
from model.device_state import DeviceState, allocate
from model.interface import FROM_DEVICE, Shapes, StepInput, Variant
from model.programs import Executables
from model.recipe import Recipe
from model.steps import Ended, Leaves, Outcome
from sharding.axes import named


@dataclass(slots=True)
class Stage:
    """The weights of some layers, and the state that their programs take and give back."""

    leaves: Leaves
    state: DeviceState
    mesh: Mesh


def open_stages(recipes: Sequence[Recipe], leaves: Mapping[str, jax.Array]) -> list[Stage]:
    """The stages that the programs of ``recipes`` are for, each with its leaves and an empty state."""
    return [
        Stage(tuple(leaves[name] for name in recipe.model.leaves), allocate(recipe.state), recipe.model.mesh)
        for recipe in recipes
    ]


class Pipeline:
    """Runs each step through all stages; the devices of a stage take steps in the order of launching.

    What a stage waits for lies on the devices. The host waits for nothing, so that as many steps as there are stages
    can be under way, each on devices of its own.
    """

    def __init__(self, stages: Sequence[Stage], shapes: Shapes) -> None:
        self.stages = tuple(stages)
        self._shapes = shapes
        self._whole = [named(stage.mesh, ()) for stage in stages]
        self._last_tokens = LastTokens(len(stages), shapes.max_rows + 1, self._whole[0])

    def run(self, compiled: Executables, step: StepInput) -> Outcome:
        """Start ``step``, for which each stage has its program. Never blocks."""
        buffer = pack(step, self._shapes)
        if len(self.stages) == 1:
            (stage,) = self.stages
            stage.state, outcome = compiled[0](stage.leaves, stage.state, buffer)
            return outcome
        *before, last = zip(self.stages, compiled, self._whole, strict=True)
        lean = headless(buffer, step, self._shapes)
        x = self._last_tokens.seen_by(step)
        for stage, program, whole in before:
            stage.state, x = program(stage.leaves, stage.state, lean, jax.device_put(x, whole))
        stage, program, whole = last
        ended: Ended
        stage.state, ended = program(stage.leaves, stage.state, buffer, jax.device_put(x, whole))
        self._last_tokens.launched(step, ended.last_token)
        return ended.outcome


def headless(buffer: np.ndarray, step: StepInput, shapes: Shapes) -> np.ndarray:
    """What stages without head read of a step's buffer: the fields of the full variant come behind the others."""
    if step.variant is Variant.LEAN:
        return buffer
    return buffer[: buffer_size(Program(step.family, Variant.LEAN, step.size), shapes)]


class LastTokens:
    """The last tokens by slot, as the newest steps have left them on the last stage.

    A step must not wait for those launched right before it, or there would never be two under way: it takes the oldest
    of these columns in which its own tokens are.
    """

    def __init__(self, stages: int, slots: int, whole: NamedSharding) -> None:
        self._nothing = jnp.zeros(slots, jnp.int32, device=whole)
        self._columns: deque[tuple[int, jax.Array]] = deque(maxlen=stages + 1)
        self._sampled = np.zeros(slots, np.int64)
        """The step that sampled last in each slot."""
        self._step = 0

    def seen_by(self, step: StepInput) -> jax.Array:
        """A column int32[slots] with all tokens that ``step`` takes from the device."""
        newest = step.tokens[np.maximum(step.offsets + step.lengths - 1, 0)]
        waiting = step.slots[(step.lengths > 0) & (newest == FROM_DEVICE)]
        if not waiting.size:
            return self._nothing
        sampled = self._sampled[waiting].max()
        return next(column for number, column in self._columns if number >= sampled)

    def launched(self, step: StepInput, column: jax.Array) -> None:
        """Keep the column that ``step`` leaves."""
        self._step += 1
        self._sampled[step.slots[step.sample]] = self._step
        self._columns.append((self._step, column))
