"""What the compiler made of the steps, read from the optimised HLO."""

import re

import pytest

from configs.schema import Parallel
from model.batch import Program
from model.device_state import state_shapes
from model.interface import Family, Variant
from model.ladders import make_shapes
from model.programs import Recipe
from model.registry import blueprint
from model.spec import ModelSpec
from sharding.mesh import build_mesh

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


def optimised(tensor: int, program: Program) -> str:
    mesh = build_mesh(Parallel(tensor=tensor))
    model = blueprint(SPEC, mesh, "bfloat16")
    shapes = make_shapes(8, 64, 16, SPEC.context_length, SPEC.vocab_size)
    recipe = Recipe(model, shapes, state_shapes(model, shapes, 257))
    return recipe.compile(program).as_text()


@pytest.mark.parametrize("tensor", [1, 2])
def test_a_decode_step_converts_and_copies_no_pool_and_no_matrix(tensor: int) -> None:
    hlo = optimised(tensor, Program(Family.DECODE, Variant.LEAN, 8))
    pool = rf"\[257,{3 * (2 if tensor == 2 else 1) // tensor},16,"
    matrices = r"\[(576|1536|49152|24576),(576|960|1536|3072|49152|24576)\]"
    for line in hlo.splitlines():
        assert not re.search(rf"= (f32|bf16)({pool}|{matrices})\S* (convert|copy|fusion|all-gather)\(", line), line[
            :200
        ]


def test_a_tensor_parallel_decode_step_has_two_all_reduces_a_layer_and_no_all_gather() -> None:
    hlo = optimised(2, Program(Family.DECODE, Variant.LEAN, 8))
    assert " all-gather(" not in hlo
    wide = re.findall(r"= f32\[8,576\]\S* all-reduce\(", hlo)
    # and one for the embedding
    assert len(wide) == 2 * LAYERS + 1


def test_the_donated_state_is_updated_in_place() -> None:
    program = Program(Family.MIXED, Variant.FULL, 64)
    hlo = optimised(1, program)
    aliases = re.search(r"input_output_alias=\{(.*?)\}, entry", hlo)
    assert aliases is not None
    # K and V of each layer, the last tokens, two count arrays
    assert aliases.group(1).count("alias)") == 2 * LAYERS + 3
