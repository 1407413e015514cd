"""Steps in sections: the same answers as in one program, and what they save."""

import dataclasses
from functools import cache

import jax
import pytest

from configs.schema import Parallel
from model.batch import Program, pack
from model.device_state import allocate
from model.interface import Family, Variant
from model.rehearsal import rehearse
from model.sections import SECTION_LAYERS, Sections, cut_layers, section_layers
from model.spec import ModelSpec
from scheduler.commands import Finished
from tests.model.test_stages import (
    MIXTURE,
    SETTINGS,
    SLIDING,
    SPEC,
    every_kind,
    pipelined,
    play,
    programs,
    same,
    strained,
    with_all,
)

MIXED, FULL = (Program(Family.MIXED, variant, 32) for variant in (Variant.LEAN, Variant.FULL))
DECODE = Program(Family.DECODE, Variant.LEAN, 4)
DEEP_SLIDING = dataclasses.replace(SLIDING, num_layers=6, sliding_layers=(True, False) * 3)


@cache
def whole(spec: ModelSpec) -> dict[str, Finished]:
    answers = play(with_all(spec, Parallel()), SETTINGS, every_kind(), spec)
    assert strained(answers)
    return answers


@pytest.mark.parametrize("each", range(9))
def test_sections_are_all_layers_in_order_and_alike_but_at_the_ends(each: int) -> None:
    for count in range(1, 100):
        cut = cut_layers(range(5, 5 + count), each)
        assert [layer for section in cut for layer in section] == [*range(5, 5 + count)]
        assert all(cut)
        assert all(len(section) == each for section in cut[1:-1])
        assert len(cut) == (1 if not each or count < 2 * each + 2 else 2 + (count - 2) // each)


def test_steps_in_sections_answer_every_kind_of_request_as_one_program_does() -> None:
    cut = with_all(SPEC, Parallel(), 1)
    assert isinstance(cut.step(MIXED)[0], Sections)
    same(play(cut, SETTINGS, every_kind()), whole(SPEC))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "layers", "parallel"),
    [
        (SPEC, 1, Parallel(tensor=2)),
        (dataclasses.replace(SPEC, num_layers=8), 1, Parallel(stages=2)),
        (dataclasses.replace(SPEC, tie_embeddings=False), 1, Parallel()),
        (DEEP_SLIDING, 2, Parallel()),
    ],
    ids=["tensor", "stages", "untied", "sliding"],
)
def test_sections_of_any_model_and_mesh_answer_as_one_program_does(
    spec: ModelSpec, layers: int, parallel: Parallel
) -> None:
    cut = with_all(spec, parallel, layers)
    assert all(isinstance(stage, Sections) for stage in cut.step(MIXED))
    settings = SETTINGS if parallel.stages == 1 else pipelined(parallel.stages)
    same(play(cut, settings, every_kind(), spec), whole(spec))


def test_sections_alike_are_one_program_and_variants_differ_in_the_last() -> None:
    cut = with_all(SPEC, Parallel(), 1)
    (lean,), (full,) = cut.step(MIXED), cut.step(FULL)
    assert isinstance(lean, Sections)
    assert isinstance(full, Sections)
    runs = [section.run for section in lean.sections]
    assert len(runs) == SPEC.num_layers
    assert runs[1] is runs[2]
    assert len(set(map(id, runs))) == 3
    assert [section.run for section in full.sections[:-1]] == runs[:-1]
    assert full.sections[-1].run is not runs[-1]


def test_sections_give_the_whole_state_away() -> None:
    cut = with_all(SPEC, Parallel(), 1)
    (recipe,) = cut.recipes
    state = allocate(recipe.state)
    leaves = allocate(tuple(recipe.model.leaves.values()))
    (run,) = cut.step(MIXED)
    new, _ = run(leaves, state, pack(rehearse(MIXED, cut.shapes), cut.shapes))
    assert all(array.is_deleted() for array in jax.tree.leaves(state))
    assert not any(array.is_deleted() for array in jax.tree.leaves((new, leaves)))
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_a_decode_step_is_one_program() -> None:
    assert not any(isinstance(step, Sections) for step in with_all(SPEC, Parallel(), 1).step(DECODE))


def test_dense_models_are_cut_and_mixtures_are_not() -> None:
    (dense,), (mixture,) = (programs(spec, Parallel()).recipes for spec in (SPEC, MIXTURE))
    assert section_layers(dense.model) == SECTION_LAYERS
    assert section_layers(mixture.model) == 0
