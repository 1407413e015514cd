"""Tensors of GGUF files: dequantised as the gguf library does, in Hugging Face's order and under its names."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from configs.errors import ConfigError
from model.loading.gguf import GgufCheckpoint, hugging_face_name
from model.loading.gguf_file import TensorType
from tests.model.loading.files import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, weights, write_gguf, write_tensors

ROWS, COLUMNS = 96, 512


def stored(kind: Kind) -> np.ndarray:
    """A matrix in the storage of ``kind``; random blocks with scales that are finite, where nothing can quantise."""
    draw = np.random.default_rng(kind)
    values = draw.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        size, size_bytes = gguf.GGML_QUANT_SIZES[kind]
        blocks = draw.integers(0, 256, (ROWS * COLUMNS // size, size_bytes // 2, 2), np.uint8)
        blocks[..., 1] &= 0x3F  # the high byte of a float16 below 2: no infinity, no NaN
        return blocks.reshape(ROWS, -1)


@pytest.mark.parametrize("kind", list(TensorType), ids=lambda kind: kind.name)
def test_every_storage_is_read_as_the_gguf_library_dequantises_it(kind: TensorType, tmp_path: Path):
    block = stored(Kind(kind))
    write_tensors(tmp_path / "model.gguf", {"blk.0.ffn_gate.weight": (block, Kind(kind))})
    read = GgufCheckpoint(tmp_path).read("model.layers.0.mlp.gate_proj.weight")
    assert read.shape == (ROWS, COLUMNS)
    expected = gguf.quants.dequantize(block, Kind(kind)).reshape(ROWS, COLUMNS)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(read.astype(np.float32), expected)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(Kind.BF16, ml_dtypes.bfloat16), (Kind.F16, np.float16), (Kind.F32, np.float32)]
)
def test_what_is_not_quantised_keeps_its_dtype(kind: Kind, dtype: type, tmp_path: Path):
    write_tensors(tmp_path / "model.gguf", {"output.weight": (stored(kind), kind)})
    assert GgufCheckpoint(tmp_path).read("lm_head.weight").dtype == dtype


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k: the halves of each head become neighbours."""
    out = np.empty_like(rows)
    for head in range(heads):
        for i in range(HEAD_DIM):
            half, place = divmod(i, HEAD_DIM // 2)
            out[head * HEAD_DIM + 2 * place + half] = rows[head * HEAD_DIM + i]
    return out


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_q_and_k_of_the_llama_family_come_back_in_the_order_before_conversion(kind: Kind, tmp_path: Path):
    original = weights()
    quantised = {name: gguf.quants.quantize(array, kind) for name, array in original.items() if "attn_" in name}
    for name, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS)):
        quantised[f"blk.1.{name}.weight"] = permuted(quantised[f"blk.1.{name}.weight"], heads)
    write_tensors(tmp_path / "model.gguf", {name: (array, kind) for name, array in quantised.items()})
    read = GgufCheckpoint(tmp_path).read
    for ours, theirs in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"), ("o_proj", "attn_output")):
        expected = gguf.quants.dequantize(gguf.quants.quantize(original[f"blk.1.{theirs}.weight"], kind), kind)
        np.testing.assert_array_equal(read(f"model.layers.1.self_attn.{ours}.weight"), expected)


def test_other_families_are_stored_in_hugging_face_order(tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", "qwen3")
    read = GgufCheckpoint(tmp_path).read("model.layers.0.self_attn.q_proj.weight")
    np.testing.assert_array_equal(read, weights()["blk.0.attn_q.weight"])


def test_gemma_3s_norms_come_back_without_what_the_converter_folds_into_them(tmp_path: Path):
    original = {
        "blk.0.attn_norm": "model.layers.0.input_layernorm",
        "blk.0.post_attention_norm": "model.layers.0.post_attention_layernorm",
        "blk.0.ffn_norm": "model.layers.0.pre_feedforward_layernorm",
        "blk.0.post_ffw_norm": "model.layers.0.post_feedforward_layernorm",
        "blk.0.attn_q_norm": "model.layers.0.self_attn.q_norm",
        "output_norm": "model.norm",
    }
    draw = np.random.default_rng(0)
    values = {name: draw.standard_normal(HIDDEN).astype(np.float32) for name in original}
    tensors = {f"{name}.weight": (array + 1, Kind.F32) for name, array in values.items()}
    matrix = draw.standard_normal((HIDDEN, HIDDEN)).astype(np.float32)
    write_tensors(tmp_path / "model.gguf", tensors | {"blk.0.attn_q.weight": (matrix, Kind.F32)}, "gemma3")
    read = GgufCheckpoint(tmp_path).read
    for name, ours in original.items():
        np.testing.assert_allclose(read(f"{ours}.weight"), values[name], atol=1e-6)
    np.testing.assert_array_equal(read("model.layers.0.self_attn.q_proj.weight"), matrix)


def test_shapes_are_known_without_reading_and_every_tensor_has_its_own(tmp_path: Path):
    write_gguf(tmp_path / "model.gguf")
    checkpoint = GgufCheckpoint(tmp_path)
    assert len(checkpoint.names()) == len(weights())
    assert all(checkpoint.read(name).shape == checkpoint.shape(name) for name in checkpoint.names())
    assert checkpoint.shape("model.layers.1.mlp.down_proj.weight") == (HIDDEN, 64)


def test_threads_read_what_one_thread_reads(tmp_path: Path):
    write_gguf(tmp_path / "model.gguf")
    checkpoint = GgufCheckpoint(tmp_path)
    names = list(checkpoint.names()) * 4
    with ThreadPoolExecutor(4) as pool:
        for name, read in zip(names, pool.map(checkpoint.read, names), strict=True):
            np.testing.assert_array_equal(read, checkpoint.read(name))


@pytest.mark.parametrize(
    "name", ["blk.0.ssm_in.weight", "blk.0.ffn_gate_exps.weight", "blk.x.attn_q.weight", "attn_q.weight", "token_embd"]
)
def test_a_tensor_that_no_supported_model_has_is_refused(name: str):
    with pytest.raises(ConfigError, match="no supported architecture"):
        hugging_face_name(Path("model.gguf"), name)


def test_a_missing_tensor_is_named(tmp_path: Path):
    write_gguf(tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match=r"no tensor for lm_head\.weight"):
        GgufCheckpoint(tmp_path).read("lm_head.weight")
