import json
from pathlib import Path

import pytest

import configs
from configs.load import load
from configs.schema_json import schema_json

FOLDER = Path(configs.__file__).parent
LAUNCH_FILES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_launch_files() -> None:
    assert {path.stem for path in LAUNCH_FILES} >= {
        "smollm2-135m",
        "llama3-8b-dummy",
        "qwen3-0.6b-dummy",
        "qwen3-moe-tiny",
    }


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.stem)
def test_every_launch_file_of_the_project_loads(path: Path) -> None:
    loaded = load(path, (), {})
    if loaded.config.model.load_format == "dummy":
        assert json.loads((Path(loaded.config.model.source) / "config.json").read_text())["architectures"]


def test_the_schema_for_editors_is_in_step_with_the_code() -> None:
    assert (FOLDER / "schema.json").read_text() == schema_json(), "run: radjax config schema > configs/schema.json"
