import importlib
from pathlib import Path

import pytest

from tests.layout.sources import ROOMS, ROOT


@pytest.mark.parametrize("room", ROOMS)
def test_the_packages_that_are_imported_are_ours(room: str) -> None:
    # another distribution may own a top-level name such as "scheduler" and come first on the path
    module = importlib.import_module(room)
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(ROOT)


def test_every_folder_of_python_files_is_a_package() -> None:
    # without this, tests/scheduler would become the module "scheduler" and hide ours
    folders = {path.parent for room in (*ROOMS, "tests") for path in (ROOT / room).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("room", ROOMS)
def test_packages_run_no_code_when_imported(room: str) -> None:
    for path in (ROOT / room).rglob("__init__.py"):
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        assert len(lines) <= 1, f"{path} holds more than a docstring"
        assert all(line.startswith('"""') for line in lines)
