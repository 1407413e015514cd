import subprocess
import sys
from pathlib import Path

import pytest

from tests.layout.sources import ROOT

MAKE_VENV = str(ROOT / ".ci" / "make-venv")


def fake(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def make_venv(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script where only the Pythons of ``folder`` are on the path."""
    return subprocess.run(
        ["/bin/sh", MAKE_VENV], cwd=folder, env={"PATH": str(folder)}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("names", [(), ("python3",), ("python3.13", "python3")])
def test_without_a_python_that_works_setup_says_what_is_needed(tmp_path: Path, names: tuple[str, ...]) -> None:
    # document: V-6
    for name in names:
        fake(tmp_path, name, 'if [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi')
    result = make_venv(tmp_path)
    assert result.returncode == 1
    assert "needs Python 3.11, 3.12 or 3.13" in result.stderr
    assert ("python3 is: Python 3.9.2" in result.stderr) == bool(names)


def test_setup_takes_the_first_python_that_works_and_passes_over_one_that_does_not(tmp_path: Path) -> None:
    fake(tmp_path, "python3.13", "exit 127")  # as a shim without its version does
    fake(tmp_path, "python3.12", 'case "$*" in *venv\\ *) echo made "$@";; esac')
    fake(tmp_path, "python3", "exit 1")
    result = make_venv(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "made -m venv --clear .venv" in result.stdout


def test_setup_keeps_an_environment_that_works(tmp_path: Path) -> None:
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    fake(binaries, "python", f'exec {sys.executable} "$@"')
    result = make_venv(tmp_path)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize(
    ("failing", "ran", "status"), [("", "test lint", 0), ("test", "test", 2), ("lint", "test lint", 2)]
)
def test_the_gate_is_the_readmes_test_command_and_then_the_lint(
    tmp_path: Path, failing: str, ran: str, status: int
) -> None:
    fake(tmp_path, "make", f'echo "make $1"; [ "$1" != "{failing}" ] || exit 2')
    path = f"{tmp_path}:/usr/bin:/bin"
    gate = [str(ROOT / ".ci" / "run")]
    result = subprocess.run(gate, cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.split()) == (
        status,
        [word for goal in ran.split() for word in ("make", goal)],
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"    {result.stdout.splitlines()[0]} " in readme
