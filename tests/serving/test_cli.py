import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from configs.errors import ConfigError
from serving.cli import COMMANDS, Main, load_command, main
from tests.layout.sources import ROOT


def only(run: Main) -> Callable[[str], Main]:
    """A loader that knows only this one."""
    return lambda name: run


def raising(error: BaseException) -> Callable[[str], Main]:
    def run(argv: list[str]) -> int:
        raise error

    return only(run)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_gets_its_arguments_untouched_and_gives_its_status(name: str) -> None:
    seen: list[tuple[str, list[str]]] = []

    def load(name: str) -> Main:
        def run(argv: list[str]) -> int:
            seen.append((name, argv))
            return 7

        return run

    assert main([name, "--set", "a.b=c", "--help", "--", "x"], load) == 7
    assert seen == [(name, ["--set", "a.b=c", "--help", "--", "x"])]


def test_a_config_error_is_one_line_on_stderr_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"], raising(ConfigError("is wrong", key="a.b", value=1, suggestion="try 2"))) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "radjax serve: a.b: is wrong (got 1); try 2\n")


def test_ctrl_c_is_status_130_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat"], raising(KeyboardInterrupt())) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        main(["serve"], raising(ZeroDivisionError()))


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["--help"])
    assert leave.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and what in out for name, what in COMMANDS.items())


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()


def test_no_command_prints_the_help_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().err


def test_a_misspelt_command_is_refused_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["serv"])
    assert leave.value.code == 2
    assert "did you mean serve?" in capsys.readouterr().err


def test_every_command_has_a_module_in_the_folder() -> None:
    modules = {path.stem for path in (ROOT / "serving" / "commands").glob("*.py")}
    assert modules >= set(COMMANDS)


@pytest.mark.parametrize("arguments", [["config", "schema"], ["config", "check", "configs/smollm2-135m.yaml"]])
def test_a_reader_that_goes_away_is_no_traceback(arguments: list[str]) -> None:
    # -E: PYTHONUNBUFFERED would hide what is written only at exit
    command = [sys.executable, "-E", "-m", "serving", *arguments]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        result = subprocess.run(command, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (1, b"")


def test_a_command_is_found_by_its_name() -> None:
    assert load_command("config").__module__ == "serving.commands.config"
