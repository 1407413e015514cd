"""Headers of GGUF files: read as the format's own library reads them, and never trusted."""

from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from model.loading.gguf_file import BLOCKS, TensorType, open_gguf
from tests.model.loading.files import TOKENS, write_gguf


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


def test_metadata_and_tensors_are_those_that_the_gguf_library_reads(whole: Path):
    ours, theirs = open_gguf(whole), gguf.GGUFReader(whole)
    written = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata == written
    assert ours.strings("tokenizer.ggml.tokens") == TOKENS
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        assert ours.tensors[tensor.name].shape == tuple(tensor.shape[::-1])
        assert ours.blocks(tensor.name).tobytes() == tensor.data.tobytes()


def test_block_sizes_are_those_of_the_gguf_library():
    for kind, size in BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)] == size
    assert set(BLOCKS) == set(TensorType)


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 0.999_999))
def test_a_file_cut_anywhere_is_refused_by_name(share: float, whole: Path, tmp_path_factory: pytest.TempPathFactory):
    cut = tmp_path_factory.mktemp("cut") / "cut.gguf"
    content = whole.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ConfigError, match=r"cut\.gguf"):
        open_gguf(cut)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 3000), value=st.integers(0, 255))
def test_a_damaged_header_is_read_or_refused_but_never_crashes(
    at: int, value: int, whole: Path, tmp_path_factory: pytest.TempPathFactory
):
    damaged = tmp_path_factory.mktemp("damaged") / "damaged.gguf"
    content = bytearray(whole.read_bytes())
    content[at] = value
    damaged.write_bytes(content)
    try:
        opened = open_gguf(damaged)
    except ConfigError:
        return
    assert all(tensor.offset + tensor.size_bytes <= len(content) for tensor in opened.tensors.values())


def test_a_count_that_no_model_has_is_refused_before_anything_is_allocated(whole: Path, tmp_path: Path):
    content = bytearray(whole.read_bytes())
    content[8:16] = (2**60).to_bytes(8, "little")
    (tmp_path / "many.gguf").write_bytes(content)
    with pytest.raises(ConfigError, match="tensors, more than"):
        open_gguf(tmp_path / "many.gguf")


def test_another_kind_of_file_is_said_to_be_one(tmp_path: Path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(ConfigError, match="not a GGUF file"):
        open_gguf(tmp_path / "x.gguf")
