"""A service that cannot start with what it was given says why, and leaves with status 2. The engine is the real one."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.loading.files import write_gguf
from tests.serving.process.service import ROOT, free_port


def refused(tmp_path: Path, section: str, source: Path) -> str:
    """What ``radjax serve`` says of a launch file, on its way out."""
    launch_file = tmp_path / "launch.yaml"
    launch_file.write_text(f"model: {{source: {source}, cache_dir: {tmp_path / 'cache'}}}\n{section}\n")
    command = [sys.executable, "-m", "serving", "serve", str(launch_file), "--port", str(free_port())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    return path


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "no such model folder" in refused(tmp_path, "", tmp_path / "nowhere")


def test_a_truncated_model_is_named(tmp_path: Path, model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-100])
    assert "tiny.gguf is truncated" in refused(tmp_path, "", model)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("cache: {max_total_tokens: 31}", "cache.max_total_tokens"),
        ("scheduler: {chunk_tokens: 16, max_running_requests: 17}", "scheduler.chunk_tokens"),
        ("scheduler: {max_runing_requests: 17}", "scheduler.max_running_requests"),
    ],
)
def test_a_contradiction_and_a_typo_name_the_key(tmp_path: Path, model: Path, section: str, key: str) -> None:
    assert key in refused(tmp_path, section, model)
