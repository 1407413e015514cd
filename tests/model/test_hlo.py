"""What the compiler made of the steps, read from the optimised HLO."""

import dataclasses
import math
import re

import pytest

from configs.schema import Parallel
from model.batch import Program
from model.device_state import state_shapes
from model.interface import Family, Variant
from model.ladders import make_shapes
from model.recipe import Recipe
from model.registry import blueprint
from model.spec import Experts, ModelSpec
from sharding.mesh import build_mesh
from tests.compiling import SHIPPED_HLO

LAYERS = 3
SPEC = ModelSpec(
    architecture="llama",
    num_layers=LAYERS,
    hidden_size=576,
    intermediate_size=1536,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    vocab_size=49152,
    context_length=2048,
    norm_eps=1e-5,
    rope_theta=1e5,
    rope_scaling=None,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=False,
    dtype="bfloat16",
    eos_token_ids=(2,),
)


MIXTURE = dataclasses.replace(
    SPEC, architecture="qwen2_moe", experts=Experts(count=8, per_token=2, width=256, normalise=True, shared_width=512)
)


def optimised(tensor: int, program: Program, spec: ModelSpec = SPEC, expert: int = 1) -> str:
    mesh = build_mesh(Parallel(tensor=tensor, expert=expert))
    model = blueprint(spec, mesh, "bfloat16")
    shapes = make_shapes(8, 64, 16, SPEC.context_length, SPEC.vocab_size)
    recipe = Recipe(model, shapes, state_shapes(model, shapes, 257))
    return recipe.lower(program).compile(dict(SHIPPED_HLO)).as_text()


@pytest.mark.parametrize("tensor", [1, 2])
def test_a_decode_step_converts_and_copies_no_pool_and_no_matrix(tensor: int) -> None:
    hlo = optimised(tensor, Program(Family.DECODE, Variant.LEAN, 8))
    pool = rf"\[257,{3 * (2 if tensor == 2 else 1) // tensor},16,"
    matrices = r"\[(576|1536|49152|24576),(576|960|1536|3072|49152|24576)\]"
    for line in hlo.splitlines():
        for wrong in (
            rf"= (f32|bf16)({pool}|{matrices})\S* (convert|copy|fusion|all-gather)\(",
            rf"= u16{pool}\S* (convert|copy|all-gather)\(",
        ):
            assert not re.search(wrong, line), line[:200]


DECODE, MIXED = Program(Family.DECODE, Variant.LEAN, 8), Program(Family.MIXED, Variant.LEAN, 64)
QUICK = [(SPEC, 1, 2, DECODE), (SPEC, 1, 4, MIXED), (MIXTURE, 2, 2, DECODE)]
MORE = [
    (SPEC, 1, 2, MIXED),
    (SPEC, 1, 4, DECODE),
    (SPEC, 1, 8, DECODE),
    (SPEC, 1, 8, MIXED),
    (MIXTURE, 2, 1, DECODE),
    (MIXTURE, 4, 2, MIXED),
]


@pytest.mark.parametrize(
    ("spec", "expert", "tensor", "program"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_a_layer_of_a_step_over_several_devices_has_two_all_reduces_and_no_other_collective(
    spec: ModelSpec, expert: int, tensor: int, program: Program
) -> None:
    hlo = optimised(tensor, program, spec, expert)
    # neither weights nor pages nor logits are brought together
    assert not re.findall(r" (?:all-gather|all-to-all|collective-permute|reduce-scatter)\S*\(", hlo)
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* all-reduce\(", hlo)
    sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
    # and one for the embedding; what the sampler adds up is a number or a block of the vocabulary a row
    assert sizes.count(program.size * SPEC.hidden_size) == 2 * LAYERS + 1
    assert max(sizes) == program.size * SPEC.hidden_size


def test_a_decode_step_of_a_mixture_converts_no_array_of_experts() -> None:
    hlo = optimised(1, DECODE, MIXTURE)
    assert not re.search(r"= (f32|bf16)\[8,(576,512|256,576)\]", hlo)


def test_the_donated_state_is_updated_in_place() -> None:
    program = Program(Family.MIXED, Variant.FULL, 64)
    hlo = optimised(1, program)
    aliases = re.search(r"input_output_alias=\{(.*?)\}, entry", hlo)
    assert aliases is not None
    # K and V of each layer, the last tokens, two count arrays
    assert aliases.group(1).count("alias)") == 2 * LAYERS + 3
