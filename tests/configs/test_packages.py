"""The packages that are imported are this project's."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.packages import check_packages


def test_packages_of_this_checkout_pass_and_those_of_another_place_are_named(tmp_path: Path) -> None:
    check_packages()
    with pytest.raises(ConfigError, match=f"'configs' comes from .* and not from {tmp_path}"):
        check_packages(tmp_path)


def test_the_command_names_a_foreign_package_that_hides_ours_before_it_imports_it(tmp_path: Path) -> None:
    foreign = tmp_path / "scheduler" / "__init__.py"
    foreign.parent.mkdir()
    foreign.write_text("raise AssertionError('imported')")
    command = [sys.executable, "-m", "serving", "config", "schema"]  # the current folder comes first on the path
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"the package 'scheduler' comes from {foreign}" in done.stderr
    assert "Traceback" not in done.stderr
