"""Steps cut along the layers into programs that run one after the other on the same devices.

XLA's CPU back end takes a time to load a program from the cache that grows with the square of the program's size, and
compiles layers that are alike one by one. Sections that are alike are one program.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import jax
import numpy as np

from model.batch import Program, buffer_size
from model.device_state import DeviceState
from model.interface import Family, Variant
from model.kv_pool import Pool
from model.recipe import Recipe
from model.registry import Blueprint, blueprint
from model.steps import Leaves

SECTION_LAYERS: Final = 6
"""Also the period of Gemma 3's windows: every section has the same ones."""

Executable = Callable[..., tuple[DeviceState, Any]]
"""Takes leaves, donated state, buffer and what ``build_step`` says."""


def section_layers(model: Blueprint) -> int:
    """``Recipe.section_layers`` for ``model``.

    A mixture of experts counts tokens in one array over all layers. Off CPU a program is not known to load slowly.
    """
    on_cpu = model.mesh.devices.flat[0].platform == "cpu"
    return SECTION_LAYERS if on_cpu and model.spec.experts is None else 0


def compile_step(recipe: Recipe, program: Program, lean: Executable | None = None) -> Executable:
    """Compile one step, in sections where that is worth it: a decode step is loaded in a second, and counts calls.

    Args:
        recipe: of the whole stage.
        program: what to compile.
        lean: its lean variant if there is one; all sections but the last are the same.
    """
    cut = cut_layers(recipe.model.layers, recipe.section_layers)
    if program.family is Family.DECODE or len(cut) == 1:
        return recipe.lower(program).compile()
    return Sections(recipe, program, cut, lean if isinstance(lean, Sections) else None)


def cut_layers(layers: range, each: int) -> tuple[range, ...]:
    """Sections of ``each`` layers and what is left before and behind them; one section if there are no two such."""
    middle = (len(layers) - 2) // each if each else 0
    if middle < 2:
        return (layers,)
    left = len(layers) - middle * each
    edges = [layers.start, *range(layers.start + left - left // 2, layers.stop, each), layers.stop]
    return tuple(map(range, edges, edges[1:]))


@dataclass(slots=True, frozen=True)
class Section:
    """One program of a step, and what of the stage it is given."""

    run: Executable
    leaves: tuple[int, ...]
    """Places among the leaves of the stage."""
    pool: slice
    """Layers of the stage."""
    keeps: bool
    """Whether it has the head, and what the head keeps."""


class Sections:
    """A step in sections, called like the one program that it stands for."""

    def __init__(self, recipe: Recipe, program: Program, cut: Sequence[range], lean: "Sections | None") -> None:
        model = recipe.model
        self._alone = model.first and model.last
        headless = program if program.family is Family.SCORE else replace(program, variant=Variant.LEAN)
        self._headless_words = buffer_size(headless, recipe.shapes)
        self.compiled: dict[object, Executable] = {}
        """By what the programs were made from."""
        if lean is not None:
            self.compiled.update(lean.compiled)
        self.sections = tuple(self._section(recipe, layers, program, headless) for layers in cut)

    def __call__(
        self, leaves: Leaves, state: DeviceState, buffer: np.ndarray, *before: jax.Array
    ) -> tuple[DeviceState, Any]:
        """The new state, and what ``build_step`` says."""
        if self._alone:
            assert state.sampled is not None, "what has the head keeps what it samples"
            before = (state.sampled.last_token,)
        x: Any
        (x,) = before
        ks, vs = [], []
        for section in self.sections:
            part = part_of(state, section.pool, section.keeps)
            mine = tuple(leaves[at] for at in section.leaves)
            part, x = section.run(mine, part, buffer if section.keeps else buffer[: self._headless_words], x)
            ks += part.pool.k
            vs += part.pool.v
            state = state._replace(sampled=part.sampled) if section.keeps else state
        return state._replace(pool=Pool(tuple(ks), tuple(vs))), x.outcome if self._alone else x

    def _section(self, recipe: Recipe, layers: range, program: Program, headless: Program) -> Section:
        model = recipe.model
        part = blueprint(model.spec, model.mesh, model.dtype, model.attention, layers)
        at = {name: place for place, name in enumerate(model.leaves)}
        # a tied head is the embedding
        taken = tuple(at[name] if name in at else at["embedding"] for name in part.leaves)
        pool = slice(layers.start - model.layers.start, layers.stop - model.layers.start)
        wanted = program if part.last else headless
        mine = Recipe(part, recipe.shapes, part_of(recipe.state, pool, part.last))
        key = (wanted, part.graph, tuple(part.leaves.values()), mine.state, part.first, part.last)
        if key not in self.compiled:
            self.compiled[key] = mine.lower(wanted).compile()
        return Section(self.compiled[key], taken, pool, part.last)


def part_of(state: DeviceState, layers: slice, keeps: bool) -> DeviceState:
    """What a section takes of the state of its stage."""
    pool = Pool(state.pool.k[layers], state.pool.v[layers])
    return DeviceState(pool, state.sampled if keeps else None, state.routed)
