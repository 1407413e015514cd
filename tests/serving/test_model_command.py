"""``radjax model``: pull, list and convert, over a cache of its own."""

from pathlib import Path

import numpy as np
import pytest

from configs.errors import ConfigError
from configs.schema import Model, Parallel
from model.loading.folder import model_folder
from model.loading.hf_config import read_config
from model.registry import blueprint
from model.weights import load_weights
from serving.commands.model import main
from sharding.mesh import build_mesh
from tests.model.loading.files import write_gguf

GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "llama"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("RADJAX_CACHE_DIR", str(cache))
    return cache


def test_pull_prints_the_folder_and_list_shows_it(tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]):
    write_gguf(tmp_path / "my.gguf")
    assert main(["pull", str(tmp_path / "my.gguf")]) == 0
    folder = capsys.readouterr().out.strip()
    assert Path(folder).parent == own_cache / "models"
    assert main(["list"]) == 0
    assert capsys.readouterr().out.split()[2:] == [str(tmp_path / "my.gguf"), folder]


def test_pull_takes_the_source_of_a_launch_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "launch.yaml").write_text(f"model:\n  source: {GOLDEN}\n")
    assert main(["pull", str(tmp_path / "launch.yaml")]) == 0
    assert capsys.readouterr().out.strip() == str(GOLDEN)


def test_an_empty_cache_lists_nothing(capsys: pytest.CaptureFixture[str]):
    assert main(["list"]) == 0
    assert capsys.readouterr().out == ""


def test_a_converted_model_has_the_weights_of_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["convert", str(GOLDEN), str(tmp_path / "converted")]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "converted")
    assert "loading weights: 100 %" in err
    leaves = []
    for path in (GOLDEN, tmp_path / "converted"):
        folder = model_folder(path)
        model = blueprint(read_config(folder), build_mesh(Parallel()), "bfloat16")
        leaves.append(load_weights(Model(source=str(path)), folder, model, lambda done, total: None))
    assert leaves[0].keys() == leaves[1].keys()
    for name, leaf in leaves[0].items():
        assert np.asarray(leaf).tobytes() == np.asarray(leaves[1][name]).tobytes(), name
    with pytest.raises(ConfigError, match="exists already"):
        main(["convert", str(GOLDEN), str(tmp_path / "converted")])


def test_a_source_that_is_not_there_is_a_configuration_error():
    with pytest.raises(ConfigError, match="no such model folder"):
        main(["pull", "nowhere"])
