"""The hand's figures of a step against the model's own shapes, and against what XLA counts in the programs."""

import dataclasses
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import Parallel
from configs.stages import stage_layers
from model.batch import Program
from model.counted_costs import count_costs
from model.device_state import state_shapes
from model.interface import Family, Variant
from model.ladders import make_shapes
from model.recipe import Recipe
from model.registry import blueprint, stage_blueprints
from model.spec import Experts, ModelSpec
from model.step_costs import Shares, Work, costs_by_formula
from sharding.mesh import build_mesh
from tests.model.test_relayout import SPEC, SPECS

WIDE = dataclasses.replace(
    SPEC,
    num_layers=7,
    hidden_size=2048,
    intermediate_size=8192,
    num_heads=16,
    num_kv_heads=4,
    head_dim=128,
    vocab_size=32_000,
    context_length=4096,
    dtype="bfloat16",
)
MIXTURE = dataclasses.replace(
    WIDE, architecture="qwen3_moe", qk_norm=True, experts=Experts(count=32, per_token=4, width=1024, normalise=True)
)
SLIDING = dataclasses.replace(
    WIDE,
    architecture="gemma3",
    qk_norm=True,
    post_norms=True,
    sliding_window=512,
    sliding_layers=(True, False) * 3 + (True,),
)


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=15)
@given(
    kv=st.integers(1, 4),
    group=st.integers(1, 4),
    vocab=st.integers(100, 1000),
    mesh=st.sampled_from([(1, 1, 1), (1, 2, 1), (2, 2, 1), (1, 4, 2), (2, 2, 2)]),
    dtype=st.sampled_from(["bfloat16", "float32"]),
)
def test_weights_of_a_device_are_those_of_the_models_leaves(
    name: str, kv: int, group: int, vocab: int, mesh: tuple[int, int, int], dtype: str
) -> None:
    spec = dataclasses.replace(SPECS[name], num_layers=3, num_kv_heads=kv, num_heads=kv * group, vocab_size=vocab)
    parallel = Parallel(expert=mesh[0] if spec.experts else 1, tensor=mesh[1], stages=mesh[2])
    parts = stage_blueprints(spec, build_mesh(parallel), dtype)
    for part, layers in zip(parts, stage_layers(3, parallel.stages), strict=True):
        held = (math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in part.leaves.values())
        assert Shares(spec, parallel, dtype).stage_bytes(layers) == sum(held)


def assert_alike(counted: Work, known: Work) -> None:
    """Softmax, norms and activations come on top of what the formula knows."""
    assert known.flops <= counted.flops <= 1.1 * known.flops
    assert known.num_bytes * 0.97 <= counted.num_bytes <= 1.1 * known.num_bytes
    assert counted.summed_bytes == known.summed_bytes


CASES = [(MIXTURE, Parallel(tensor=2, expert=4, stages=2))]
MORE = [
    (WIDE, Parallel()),
    (WIDE, Parallel(tensor=2)),
    (WIDE, Parallel(tensor=8)),
    (MIXTURE, Parallel()),
    (SLIDING, Parallel(stages=2)),
    (dataclasses.replace(WIDE, hidden_size=8192, intermediate_size=28_672, num_heads=64, num_kv_heads=8), Parallel()),
    (dataclasses.replace(WIDE, hidden_size=3072, num_heads=24, num_kv_heads=24), Parallel(tensor=4)),
]


@pytest.mark.parametrize(
    ("spec", "parallel"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_what_xla_counts_in_the_programs_is_what_the_formula_says(spec: ModelSpec, parallel: Parallel) -> None:
    counted, known = count_costs(spec, parallel, "bfloat16"), costs_by_formula(spec, parallel, "bfloat16")
    assert len(counted) == len(known) == parallel.stages
    for mine, theirs in zip(counted, known, strict=True):
        for rows, context in ((1, 16), (32, 2048), (256, 4096)):
            assert_alike(mine.decode(rows, context), theirs.decode(rows, context))
        for tokens in (128, 4096):
            assert_alike(mine.prefill(tokens), theirs.prefill(tokens))


def test_the_shards_of_a_step_add_up_as_many_bytes_as_the_formula_says() -> None:
    spec = dataclasses.replace(SPECS["llama"], num_layers=3)
    rows, parallel = 8, Parallel(tensor=2)
    model = blueprint(spec, build_mesh(parallel), "float32")
    shapes = make_shapes(rows, 64, 16, 64, spec.vocab_size)
    recipe = Recipe(model, shapes, state_shapes(model, shapes, 9))
    hlo = recipe.lower(Program(Family.DECODE, Variant.LEAN, rows)).compile().as_text() or ""
    found = re.findall(r"= f32\[([\d,]+)\]\S* all-reduce(?:-start)?\(", hlo)
    sizes = [4 * math.prod(map(int, shape.split(","))) for shape in found]
    a_sum = 4 * rows * spec.hidden_size
    (known,) = costs_by_formula(spec, parallel, "float32")
    # what the sampler adds up is a number or a block of the vocabulary a row
    assert sum(size for size in sizes if size == a_sum) == known.decode(rows, 16).summed_bytes


@given(rows=st.integers(1, 512), context=st.integers(1, 10_000))
def test_more_work_takes_no_less(rows: int, context: int) -> None:
    for spec in (WIDE, MIXTURE, SLIDING):
        (costs,) = costs_by_formula(spec, Parallel(), "bfloat16")
        less, more = costs.decode(rows, context), costs.decode(rows + 1, context + 1)
        assert less.flops < more.flops
        assert less.num_bytes < more.num_bytes


def test_an_expert_is_read_once_however_many_take_it_and_not_at_all_if_none_does() -> None:
    (costs,) = costs_by_formula(MIXTURE, Parallel(expert=4), "bfloat16")
    ((_, layer),) = costs.layers
    assert layer.experts is not None
    here = layer.experts.one.num_bytes * 8
    assert layer.experts.at(1).num_bytes == pytest.approx(here * 4 / 32)
    assert layer.experts.at(10_000).num_bytes == pytest.approx(here)
