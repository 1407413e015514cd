"""Whatever the sizes of a model and of the mesh: heads are dealt once, and several devices compute what one does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import Parallel
from model.device_state import allocate, state_shapes
from model.loading.dummy import DummyCheckpoint
from model.registry import blueprint
from model.spec import Experts, ModelSpec
from model.weights import Assembly, assemble, hugging_face_shapes
from sharding.heads import ZERO_HEAD
from sharding.mesh import build_mesh
from tests.model.harness import NUM_PAGES, Bench, Row, mixed, tiny_shapes

MESHES = [Parallel(tensor=2), Parallel(tensor=4), Parallel(tensor=8)]
SPARSE_MESHES = [*MESHES, Parallel(expert=2), Parallel(expert=2, tensor=2), Parallel(expert=4, tensor=2)]


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    kv, group = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    sparse = draw(st.booleans())
    shared = draw(st.sampled_from([0, 16])) if sparse else 0
    architecture = "qwen2_moe" if sparse else draw(st.sampled_from(["llama", "qwen2", "qwen3"]))
    experts = None
    if sparse:
        experts = Experts(
            count=4 * draw(st.integers(1, 3)),
            per_token=draw(st.integers(1, 4)),
            width=8,
            normalise=draw(st.booleans()),
            shared_width=shared,
        )
    return ModelSpec(
        architecture=architecture,  # pyright: ignore[reportArgumentType]  one of the names above
        num_layers=2,
        hidden_size=16,
        intermediate_size=32,
        num_heads=kv * group,
        num_kv_heads=kv,
        head_dim=4,
        vocab_size=draw(st.integers(20, 400)),
        context_length=128,
        norm_eps=1e-6,
        rope_theta=1e4,
        rope_scaling=None,
        tie_embeddings=draw(st.booleans()),
        qkv_bias=architecture in ("qwen2", "qwen2_moe"),
        qk_norm=architecture == "qwen3",
        dtype="float32",
        eos_token_ids=(),
        experts=experts,
    )


def checkpoint(spec: ModelSpec) -> DummyCheckpoint:
    return DummyCheckpoint(hugging_face_shapes(spec), 3)


def meshes_of(spec: ModelSpec) -> list[Parallel]:
    return MESHES if spec.experts is None else SPARSE_MESHES


@settings(max_examples=25)
@given(spec=specs(), data=st.data())
def test_every_shard_of_the_fused_projection_holds_whole_groups_and_every_head_once(
    spec: ModelSpec, data: st.DataObject
) -> None:
    parallel = data.draw(st.sampled_from(meshes_of(spec)))
    model = blueprint(spec, build_mesh(parallel), "float32")
    layout, shards, dim = model.layout, parallel.shards, spec.head_dim
    tensors = checkpoint(spec)
    at = "model.layers.1.self_attn"
    # shape: [shards, places of q, k and v, head_dim, hidden]
    fused = Assembly(model, tensors).leaf("blocks.1.attention.qkv").T.reshape(shards, -1, dim, spec.hidden_size)
    out = Assembly(model, tensors).leaf("blocks.1.attention.out").reshape(shards, -1, dim, spec.hidden_size)
    by_head = {
        part: tensors.read(f"{at}.{part}_proj.weight").reshape(-1, dim, spec.hidden_size) for part in ("q", "k", "v")
    }
    outward = tensors.read(f"{at}.o_proj.weight").T.reshape(-1, dim, spec.hidden_size)
    places, kv_places = layout.num_heads // shards, layout.num_kv_heads // shards
    dealt: list[int] = []
    for shard in range(shards):
        for place in range(places):
            head, kv = layout.query[shard * places + place], shard * kv_places + place // layout.group
            if head == ZERO_HEAD:
                assert not fused[shard, place].any()
                assert not out[shard, place].any()
                continue
            dealt.append(head)
            own = layout.kv[kv]
            assert own == head // (spec.num_heads // spec.num_kv_heads)
            mine = kv - shard * kv_places
            assert np.array_equal(fused[shard, place], by_head["q"][head])
            assert np.array_equal(fused[shard, places + mine], by_head["k"][own])
            assert np.array_equal(fused[shard, places + kv_places + mine], by_head["v"][own])
            assert np.array_equal(out[shard, place], outward[head])
    assert sorted(dealt) == list(range(spec.num_heads))
    vocab = model.leaves["embedding"].shape[0]
    assert vocab % shards == 0
    assert vocab >= spec.vocab_size


def opened(spec: ModelSpec, parallel: Parallel) -> Bench:
    model, shapes = blueprint(spec, build_mesh(parallel), "float32"), tiny_shapes(spec.vocab_size)
    leaves = assemble(model, checkpoint(spec), lambda done, total: None)
    state = allocate(state_shapes(model, shapes, NUM_PAGES))
    return Bench(model, tuple(leaves[name] for name in model.leaves), shapes, state)


@pytest.mark.slow
@settings(max_examples=12)
@given(spec=specs(), data=st.data())
def test_several_devices_compute_what_one_does_for_any_sizes(spec: ModelSpec, data: st.DataObject) -> None:
    ids = np.random.default_rng(0).integers(0, spec.vocab_size, 30).astype(np.int32)
    row = Row(ids, 0, 30, np.arange(1, 11, dtype=np.int32))
    logits: list[np.ndarray] = []
    for parallel in (Parallel(), data.draw(st.sampled_from(meshes_of(spec)))):
        bench = opened(spec, parallel)
        step, (at,) = mixed(bench.shapes, 32, [], [row])
        logits.append(bench.logits(step)[at])
    one, several = logits
    assert np.abs(one - several).max() <= 1e-4 * np.abs(one).max()
