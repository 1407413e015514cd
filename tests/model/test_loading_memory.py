"""Loading never holds the model twice: beside what is on the devices there is about one tensor in host memory."""

import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from configs.errors import ConfigError
from configs.schema import Model, Parallel
from model.loading.budget import Budget
from model.loading.folder import ModelFolder, model_folder
from model.loading.orbax import save
from model.registry import Blueprint, blueprint, joined, stage_blueprints
from model.spec import ModelSpec
from model.weights import hugging_face_shapes, load_weights
from sharding.mesh import build_mesh
from tests.model.harness import GOLDEN, Bench, Row, golden, mixed, open_bench
from tests.model.loading.files import HEAD_DIM, HEADS, KV_HEADS, write_tensors
from tests.model.test_relayout import SPEC

TALL = replace(
    SPEC,
    num_layers=12,
    hidden_size=128,
    intermediate_size=512,
    num_heads=HEADS,
    num_kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
)
LARGEST = 2 * TALL.intermediate_size * TALL.hidden_size * 4
"""Bytes of the largest leaf."""


def laid_out(tensor: int) -> Blueprint:
    return blueprint(TALL, build_mesh(Parallel(tensor=tensor)), "float32")


def write_safetensors(path: Path, spec: ModelSpec) -> ModelFolder:
    path.mkdir()
    (path / "config.json").write_text("{}")
    draw = np.random.default_rng(0)
    tensors = {name: draw.standard_normal(shape, np.float32) for name, shape in hugging_face_shapes(spec).items()}
    save_file(tensors, path / "model.safetensors")
    return model_folder(path)


def write_quantised(path: Path) -> ModelFolder:
    path.mkdir()
    (path / "config.json").write_text("{}")
    hidden, ffn, q, kv = TALL.hidden_size, TALL.intermediate_size, HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    layer = {"attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, q)}
    layer |= {"ffn_gate": (ffn, hidden), "ffn_up": (ffn, hidden), "ffn_down": (hidden, ffn)}
    shapes = {f"blk.{i}.{name}.weight": shape for i in range(TALL.num_layers) for name, shape in layer.items()}
    shapes |= {"token_embd.weight": (TALL.vocab_size, hidden), "output.weight": (TALL.vocab_size, hidden)}
    kind, draw = gguf.GGMLQuantizationType.Q8_0, np.random.default_rng(0)
    tensors = {
        name: (gguf.quantize(draw.standard_normal(shape, np.float32), kind), kind) for name, shape in shapes.items()
    }
    vectors = [f"blk.{i}.{name}.weight" for i in range(TALL.num_layers) for name in ("attn_norm", "ffn_norm")]
    for name in (*vectors, "output_norm.weight"):
        tensors[name] = (np.ones(hidden, np.float32), gguf.GGMLQuantizationType.F32)
    write_tensors(path / "model.gguf", tensors)
    return model_folder(path)


def convert(path: Path) -> ModelFolder:
    source, model = write_safetensors(path.with_name("source"), TALL), laid_out(1)
    return save(path, source, load_weights(Model(source="x"), source, model, lambda done, total: None))


@pytest.mark.parametrize(
    "write",
    [lambda path: write_safetensors(path, TALL), write_quantised, convert],
    ids=["safetensors", "gguf", "orbax"],
)
def test_loading_takes_little_more_host_memory_than_the_largest_leaf(
    tmp_path: Path, write: Callable[[Path], ModelFolder]
) -> None:
    folder, model = write(tmp_path / "model"), laid_out(2)
    tracemalloc.start()
    try:
        arrays = load_weights(Model(source="x"), folder, model, lambda done, total: None)
        # on a CPU some of the arrays are what numpy has allocated
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    held = sum(array.nbytes for array in arrays.values())
    assert held > 10 * LARGEST
    # what is read, what is made of it, and its shards
    assert peak - kept < 4 * LARGEST


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_what_threads_hold_together_stays_within_the_budget(wanted: list[int]) -> None:
    budget, lock, held, most = Budget(8), threading.Lock(), [0], [0]

    def take(size: int) -> None:
        with budget.hold(size):
            with lock:
                held[0] += size
                most[0] = max(most[0], held[0])
            with lock:
                held[0] -= size

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(take, wanted))
    assert most[0] <= max(8, *wanted)


def reopened(tmp_path: Path, name: str, there: tuple[int, int], here: tuple[int, int]) -> Bench:
    """A golden model converted for one mesh, (expert, tensor), and opened on another."""
    source = GOLDEN / "models" / name
    made = open_bench(source, there[1], expert=there[0])
    save(tmp_path / "converted", model_folder(source), dict(zip(made.model.leaves, made.leaves, strict=True)))
    again = open_bench(tmp_path / "converted", here[1], expert=here[0])
    direct = open_bench(source, here[1], expert=here[0])
    for leaf, mine, theirs in zip(direct.model.leaves, direct.leaves, again.leaves, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs), err_msg=leaf)
    return again


@pytest.mark.parametrize(
    ("name", "there", "here"),
    [
        ("llama-9-3", (1, 2), (1, 1)),
        pytest.param("qwen2-moe", (1, 1), (2, 1), marks=pytest.mark.slow),
        pytest.param("qwen2-moe", (2, 2), (1, 1), marks=pytest.mark.slow),
    ],
)
def test_a_model_converted_for_one_mesh_has_the_weights_of_its_source_on_another(
    tmp_path: Path, name: str, there: tuple[int, int], here: tuple[int, int]
) -> None:
    assert reopened(tmp_path, name, there, here).leaves


def test_a_model_converted_for_one_device_has_the_reference_logits_on_two(tmp_path: Path) -> None:
    ids, expected = golden("llama-9-3")
    bench = reopened(tmp_path, "llama-9-3", (1, 1), (1, 2))
    step, (at,) = mixed(bench.shapes, 64, [], [Row(ids, 0, 39, np.arange(1, 11, dtype=np.int32))])
    difference = np.abs(bench.logits(step)[at] - expected[:39]).max()
    assert difference <= 2e-4 * np.abs(expected).max()


def test_a_tied_head_is_the_embedding_and_a_stage_without_one_loads_its_own(tmp_path: Path) -> None:
    source = GOLDEN / "models" / "llama-9-3"
    made = open_bench(source)
    assert "head" not in made.model.leaves
    assert "head" in open_bench(GOLDEN / "models" / "mistral").model.leaves
    save(tmp_path / "converted", model_folder(source), dict(zip(made.model.leaves, made.leaves, strict=True)))
    wanted = joined(stage_blueprints(made.model.spec, build_mesh(Parallel(stages=2)), "float32"))
    for folder in (tmp_path / "converted", source):
        leaves = load_weights(Model(source="x"), model_folder(folder), wanted, lambda done, total: None)
        np.testing.assert_array_equal(np.asarray(leaves["head"]), np.asarray(leaves["embedding"]))
        assert leaves["head"].devices() != leaves["embedding"].devices()


def test_a_head_converted_the_other_way_round_is_refused(tmp_path: Path) -> None:
    source = GOLDEN / "models" / "mistral"
    made = open_bench(source)
    leaves = dict(zip(made.model.leaves, made.leaves, strict=True))
    folder = save(tmp_path / "converted", model_folder(source), leaves | {"head": leaves["head"].T})
    for mesh in (Parallel(), Parallel(tensor=2)):
        wanted = blueprint(made.model.spec, build_mesh(mesh), "float32")
        with pytest.raises(ConfigError, match="does not hold this model's weights"):
            load_weights(Model(source="x"), folder, wanted, lambda done, total: None)


def test_a_mixture_converted_in_bfloat16_can_be_served_in_float32(tmp_path: Path) -> None:
    source = GOLDEN / "models" / "qwen2-moe"
    made = open_bench(source, dtype="bfloat16")
    save(tmp_path / "converted", model_folder(source), dict(zip(made.model.leaves, made.leaves, strict=True)))
    again = open_bench(tmp_path / "converted", dtype="float32")
    for name, stored, value in zip(made.model.leaves, made.leaves, again.leaves, strict=True):
        bits = np.asarray(stored)
        expected = bits.view(ml_dtypes.bfloat16) if bits.dtype == np.uint16 else bits
        np.testing.assert_array_equal(np.asarray(value), expected.astype(np.float32), err_msg=name)


@pytest.mark.parametrize("other", [{"hidden_size": 96}, {"intermediate_size": 300}, {"num_heads": 6}])
def test_converted_weights_of_another_model_are_refused_on_another_mesh(tmp_path: Path, other: dict[str, int]) -> None:
    folder, wanted = convert(tmp_path / "converted"), replace(TALL, **other)
    model = blueprint(wanted, build_mesh(Parallel(tensor=2)), "float32")
    with pytest.raises(ConfigError, match="does not hold this model's weights"):
        load_weights(Model(source="x"), folder, model, lambda done, total: None)
