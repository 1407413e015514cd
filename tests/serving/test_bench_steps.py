"""``radjax bench steps`` on a model of two small layers, and ``radjax plan`` with what it wrote."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.step_times import read_table
from serving.cli import main
from tests.layout.sources import ROOT

FILE = """
model:
  source: {source}
  context_length: 64
  cache_dir: {cache}
cache:
  max_total_tokens: 256
  host: true
scheduler:
  max_running_requests: 2
  chunk_tokens: 32
serving:
  api_key: a-secret
"""


def test_every_program_is_measured_and_the_table_serves_the_simulator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, steps = tmp_path / "tiny.yaml", tmp_path / "steps.json"
    config.write_text(FILE.format(source=ROOT / "tests/golden/models/llama", cache=tmp_path))
    command = [sys.executable, "-m", "serving", "bench", "steps", str(config), "--out", str(steps)]
    result = subprocess.run(
        [*command, "--repeat", "1", "--context", "1", "8"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    table = read_table(steps)
    measured = [f"{time.family}/{time.variant}/{time.size}" for time in table.times]
    assert sorted(measured) == sorted(
        2 * ["decode/lean/2", "decode/full/2", "score/lean/64", *2 * ["mixed/lean/64", "mixed/full/64"]]
    )
    pieces = {time.pairs for time in table.times if time.family == "mixed"}
    assert {8 * sum(range(context + 1, context + 9)) for context in (1, 8)} <= pieces, "pieces alone are measured, too"
    assert table.copies is not None
    assert "a page to host memory" in result.stdout
    assert all(name in result.stdout for name in measured)
    assert {time.context_tokens for time in table.times if time.family == "decode"} == {2 * (1 + 1), 2 * (8 + 1)}
    assert "a-secret" not in steps.read_text()
    assert main(["plan", "--json", "--steps", str(steps), "--requests", "9", "--prompt-len", "20"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["figures"]["finished"], report["settings"]["num_pages"]) == (9, 16)


def test_a_table_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(FILE.format(source=tmp_path / "absent", cache=tmp_path))
    assert main(["bench", "steps", str(config), "--out", str(tmp_path / "absent" / "steps.json")]) == 2
    assert "--out: cannot be written: No such file" in capsys.readouterr().err
