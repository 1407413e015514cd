"""Converted weights: what was saved comes back, on the devices that ask for it, or is refused."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs.errors import ConfigError
from configs.schema import Parallel
from model.loading.checkpoint import open_checkpoint
from model.loading.folder import model_folder
from model.loading.orbax import CONVERSION_FILE, Conversion, conversion_of, open_leaves, restore, save
from sharding.mesh import build_mesh
from tests.model.loading.files import write_gguf


@pytest.fixture
def leaves() -> dict[str, jax.Array]:
    sharding = NamedSharding(build_mesh(Parallel()), PartitionSpec())
    draw = np.random.default_rng(0)
    host = {
        "blocks.0.attention.qkv": draw.standard_normal((8, 6)).astype(jnp.bfloat16),
        "embedding": draw.standard_normal((16, 8)).astype(np.float32),
    }
    return {name: jax.device_put(array, sharding) for name, array in host.items()}


def targets(leaves: dict[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for name, leaf in leaves.items()}


def source_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "modeling.py").write_text("raise SystemExit")
    return path


def test_what_was_saved_comes_back_bit_by_bit_with_its_companions(tmp_path: Path, leaves: dict[str, jax.Array]):
    folder = save(tmp_path / "converted", model_folder(source_folder(tmp_path / "source")), leaves)
    assert folder == model_folder(tmp_path / "converted")
    assert folder.weights == "orbax"
    assert (folder.path / "chat_template.jinja").read_text() == "{{ messages }}"
    assert not (folder.path / "modeling.py").exists()
    restored = restore(folder, targets(leaves))
    assert restored.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert restored[name].sharding == leaf.sharding
        assert np.asarray(restored[name]).tobytes() == np.asarray(leaf).tobytes()


def test_another_model_is_refused(tmp_path: Path, leaves: dict[str, jax.Array]):
    folder = save(tmp_path / "converted", model_folder(source_folder(tmp_path / "source")), leaves)
    wanted = targets(leaves)
    wider = wanted | {"embedding": jax.ShapeDtypeStruct((32, 8), jnp.float32, sharding=leaves["embedding"].sharding)}
    for wrong in (wider, {"embedding": wanted["embedding"]}):
        with pytest.raises(ConfigError, match="does not hold this model's weights"):
            restore(folder, wrong)


def test_a_folder_says_what_it_was_converted_for(tmp_path: Path, leaves: dict[str, jax.Array]):
    folder = save(tmp_path / "converted", model_folder(source_folder(tmp_path / "source")), leaves)
    assert conversion_of(folder) == Conversion(tensor=1, expert=1, dtype="float32") == Conversion.of(targets(leaves))
    (folder.path / CONVERSION_FILE).unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        conversion_of(folder)


def test_leaves_can_be_read_one_by_one(tmp_path: Path, leaves: dict[str, jax.Array]):
    folder = save(tmp_path / "converted", model_folder(source_folder(tmp_path / "source")), leaves)
    with open_leaves(folder) as read:
        for name, leaf in leaves.items():
            assert read(name).dtype == leaf.dtype
            assert read(name).tobytes() == np.asarray(leaf).tobytes()
        with pytest.raises(ConfigError, match="does not hold this model's weights"):
            read("blocks.1.attention.qkv")


def test_a_folder_that_exists_is_never_written_over(tmp_path: Path, leaves: dict[str, jax.Array]):
    source = model_folder(source_folder(tmp_path / "source"))
    with pytest.raises(ConfigError, match="exists already"):
        save(source.path, source, leaves)


def test_converted_weights_are_no_checkpoint_of_named_tensors(tmp_path: Path, leaves: dict[str, jax.Array]):
    folder = save(tmp_path / "converted", model_folder(source_folder(tmp_path / "source")), leaves)
    with pytest.raises(ConfigError, match="holds no safetensors and no GGUF"):
        open_checkpoint(folder)


def test_each_kind_of_weights_is_opened(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    assert model_folder(tmp_path).weights == "none"
    write_gguf(tmp_path / "model.gguf")
    assert "model.norm.weight" in open_checkpoint(model_folder(tmp_path)).names()
