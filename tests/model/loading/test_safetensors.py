"""Safetensors files: one or several, mapped, and never trusted."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from configs.errors import ConfigError
from model.loading.safetensors import SafetensorsCheckpoint

TENSORS = {
    "model.norm.weight": np.arange(6, dtype=np.float32),
    "a.weight": np.random.default_rng(0).standard_normal((5, 7)).astype(ml_dtypes.bfloat16),
    "b.weight": np.random.default_rng(1).standard_normal((3, 2, 4)).astype(np.float16),
    "b.bias": np.zeros((0, 4), np.float32),
}


def write_sharded(folder: Path) -> None:
    """Two files and their index."""
    homes = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(TENSORS)}
    for file in set(homes.values()):
        save_file({name: TENSORS[name] for name in TENSORS if homes[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))


def same(checkpoint: SafetensorsCheckpoint) -> None:
    assert set(checkpoint.names()) == set(TENSORS)
    for name, array in TENSORS.items():
        read = checkpoint.read(name)
        assert checkpoint.shape(name) == read.shape == array.shape
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_one_file_gives_back_what_was_saved(tmp_path: Path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    same(SafetensorsCheckpoint(tmp_path))


def test_several_files_give_back_what_was_saved(tmp_path: Path):
    write_sharded(tmp_path)
    same(SafetensorsCheckpoint(tmp_path))


def test_threads_read_what_one_thread_reads(tmp_path: Path):
    write_sharded(tmp_path)
    checkpoint = SafetensorsCheckpoint(tmp_path)
    names = list(TENSORS) * 16
    with ThreadPoolExecutor(4) as pool:
        for name, read in zip(names, pool.map(checkpoint.read, names), strict=True):
            np.testing.assert_array_equal(read, TENSORS[name])


def test_a_missing_shard_is_named(tmp_path: Path):
    write_sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model-00002-of-00002\.safetensors is missing \(1 of 2"):
        SafetensorsCheckpoint(tmp_path)


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 0.999_999))
def test_a_file_cut_anywhere_is_refused_by_name(share: float, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("cut") / "model.safetensors"
    save_file({"w": np.ones((64, 64), np.float32)}, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        SafetensorsCheckpoint(path.parent)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 300), value=st.integers(0, 255))
def test_a_damaged_header_is_read_or_refused_but_never_crashes(
    at: int, value: int, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    save_file(TENSORS, path)
    content = bytearray(path.read_bytes())
    content[at] = value
    path.write_bytes(content)
    try:
        checkpoint = SafetensorsCheckpoint(path.parent)
    except ConfigError:
        return
    for name in checkpoint.names():
        assert checkpoint.read(name).shape == checkpoint.shape(name)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_an_index_cannot_name_a_file_outside_its_folder(name: str, tmp_path: Path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ConfigError, match="not a file of this folder|missing"):
        SafetensorsCheckpoint(tmp_path)


def test_a_quantised_tensor_is_refused_with_what_can_be_read(tmp_path: Path):
    save_file({"w": np.ones(4, np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="stored as I8; what can be read: F32, F16, BF16"):
        SafetensorsCheckpoint(tmp_path)
