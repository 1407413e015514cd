"""Leaves dealt anew for another mesh are those that the checkpoint gives for that mesh."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.schema import Parallel
from model.loading.dummy import DummyCheckpoint
from model.registry import blueprint
from model.relayout import Dealing, relaid
from model.spec import Experts, ModelSpec
from model.weights import Assembly, hugging_face_shapes, stored_as
from sharding.mesh import build_mesh

SPEC = ModelSpec(
    architecture="llama",
    num_layers=1,
    hidden_size=32,
    intermediate_size=48,
    num_heads=6,
    num_kv_heads=3,
    head_dim=8,
    vocab_size=150,
    context_length=64,
    norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=None,
    tie_embeddings=False,
    qkv_bias=False,
    qk_norm=False,
    dtype="float32",
    eos_token_ids=(2,),
)
EXPERTS = Experts(count=4, per_token=2, width=16, normalise=True, shared_width=24)
SPECS = {
    "llama": SPEC,
    "biases": dataclasses.replace(SPEC, architecture="qwen2", qkv_bias=True),
    "mixture": dataclasses.replace(SPEC, architecture="qwen2_moe", qkv_bias=True, experts=EXPERTS),
}
MESHES = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (4, 1), (4, 2)]


def leaves(spec: ModelSpec, expert: int, tensor: int) -> dict[str, np.ndarray]:
    model = blueprint(spec, build_mesh(Parallel(expert=expert, tensor=tensor)), "bfloat16")
    assembly = Assembly(model, DummyCheckpoint(hugging_face_shapes(spec), 3))
    return {name: stored_as(assembly.leaf(name), leaf.dtype) for name, leaf in model.leaves.items()}


@pytest.mark.parametrize("name", ["llama", "mixture"])
@settings(max_examples=5)
@given(
    old=st.sampled_from(MESHES),
    new=st.sampled_from(MESHES),
    kv=st.sampled_from([1, 2, 3]),
    group=st.integers(1, 3),
    vocab=st.integers(100, 400),
)
@example(old=(1, 1), new=(1, 8), kv=3, group=3, vocab=150)
@example(old=(2, 2), new=(1, 1), kv=3, group=3, vocab=257)
def test_every_leaf_of_one_mesh_becomes_that_of_another(
    name: str, old: tuple[int, int], new: tuple[int, int], kv: int, group: int, vocab: int
) -> None:
    spec = dataclasses.replace(SPECS[name], num_kv_heads=kv, num_heads=kv * group, vocab_size=vocab)
    before, after = leaves(spec, *old), leaves(spec, *new)
    for leaf, value in before.items():
        again = relaid(leaf, value, Dealing(spec, *old), Dealing(spec, *new))
        np.testing.assert_array_equal(again, after[leaf], err_msg=leaf)
