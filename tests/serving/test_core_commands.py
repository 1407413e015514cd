"""The commands that reach into the scheduler: ``bench radix`` and ``replay``."""

import json
from pathlib import Path

import pytest

from scheduler.assembly import assemble
from scheduler.commands import Shutdown
from scheduler.loop import run
from scheduler.recording import Recorder
from serving.cli import main
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask


def test_bench_radix_measures_every_pair_of_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "radix", "--nodes", "64", "128", "--tokens", "32"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["nodes"] >= nodes, row["tokens"]) for row, nodes in zip(rows, (64, 128), strict=True)] == [
        (True, 32),
        (True, 32),
    ]
    for row in rows:
        assert row["insert_us"] > 0
        assert row["match_lock_unlock_us"] > 0
        assert row["evict_page_us"] > 0


def test_bench_radix_refuses_keys_shorter_than_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", "radix", "--tokens", "3"])
    assert left.value.code == 2
    assert "at least one node and 16 tokens" in capsys.readouterr().err


def record(path: Path) -> None:
    """A short run, recorded."""
    recorder = Recorder(path.open("wb"), SHAPES, SETTINGS, 1 << 20, None)
    port = ScriptedPort({0: [(0, ask("a", [1, 2, 3], 5)), (0, ask("b", [4], 3))], 100: [(0, Shutdown())]})
    run(assemble(port, KVEchoRunner(SHAPES), SETTINGS, (recorder,)), SETTINGS.depth)
    recorder.close()


def test_replay_of_a_recorded_run_counts_its_equal_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "run")
    assert main(["replay", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert said.endswith("plans are the same\n")
    assert int(said.split()[0]) >= 5


def test_replay_says_what_is_wrong_with_a_file_that_is_no_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noise").write_bytes(b"\x05\0\0\0hello")
    for name in ("noise", "absent"):
        assert main(["replay", str(tmp_path / name)]) == 1
        assert str(tmp_path / name) in capsys.readouterr().err
