"""``radjax plan``, as it is called."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.resolve import resolve
from scheduler.assembly import assemble
from scheduler.commands import Shutdown
from scheduler.loop import run
from scheduler.recording import Recorder
from scheduler.step_times import write_table
from serving.cli import main
from serving.commands.plan import launch
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask
from tests.scheduler.tables import table

LINE = '{"arrival_s": %d, "prompt_len": 20, "max_tokens": 8}\n'


@pytest.fixture
def steps(tmp_path: Path) -> str:
    write_table(tmp_path / "steps.json", table())
    return str(tmp_path / "steps.json")


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(LINE % number for number in range(5)))
    return str(path)


@pytest.fixture
def recording(tmp_path: Path) -> str:
    path = tmp_path / "run"
    recorder = Recorder(path.open("wb"), SHAPES, SETTINGS, 1 << 20, None)
    port = ScriptedPort({0: [(0, ask("a", [1, 2, 3], 5)), (0, ask("b", [4], 3))], 100: [(0, Shutdown())]})
    run(assemble(port, KVEchoRunner(SHAPES), SETTINGS, (recorder,)), SETTINGS.depth)
    recorder.close()
    return str(path)


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["plan", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_recording_needs_no_table_and_its_plans_are_the_servers(
    recording: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = planned(capsys, recording)
    assert report["plans_compared"] >= 5
    assert report["figures"]["clock"] == "recorded"
    assert (report["figures"]["finished"], report["figures"]["output_tokens"]) == (2, 8)
    assert main(["plan", recording]) == 0
    assert "plans are the same as the server's" in capsys.readouterr().out


def test_a_trace_is_simulated_with_the_tables_own_launch(
    trace: str, steps: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = planned(capsys, trace, "--steps", steps)
    assert report["figures"]["clock"] == "model"
    assert (report["figures"]["finished"], report["figures"]["output_tokens"]) == (5, 40)
    assert report["settings"]["max_rows"] == 8
    assert report["plans_compared"] is None


def test_the_table_for_people_names_every_figure(trace: str, steps: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", trace, "--steps", steps]) == 0
    names = [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"requests", "output tokens", "TTFT", "end to end", "queue", "cache", "retractions", "pages"} <= set(names)


def test_overrides_reach_the_simulated_engine(steps: str, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ("--requests", "40", "--prefixes", "2", "--prefix-len", "64", "--prompt-len", "4", "9", "--output-len", "6")
    with_cache = planned(capsys, "--steps", steps, *shape)
    without = planned(capsys, "--steps", steps, *shape, "--set", "cache.radix=false")
    assert with_cache["figures"]["hit_rate"] > 0.5
    assert without["figures"]["hit_rate"] == 0
    assert without["figures"]["seconds"] > with_cache["figures"]["seconds"]


def test_a_synthetic_workload_arrives_at_its_rate(steps: str, capsys: pytest.CaptureFixture[str]) -> None:
    figures = planned(capsys, "--steps", steps, "--requests", "200", "--rate", "4", "--output-len", "2")["figures"]
    assert figures["finished"] == 200
    assert 40 < figures["seconds"] < 60


def test_a_recording_is_asked_again_on_the_fake_clock(
    tmp_path: Path, recording: str, steps: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = planned(capsys, recording, "--steps", steps, "--set", "cache.page_size=16")["figures"]
    assert (figures["clock"], figures["finished"], figures["output_tokens"]) == ("model", 2, 8)


@pytest.mark.parametrize("asked", ["TRACE", "RECORDING"])
def test_clients_ask_the_requests_of_a_trace_one_after_the_other(
    asked: str, trace: str, recording: str, steps: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [{"TRACE": trace, "RECORDING": recording}[asked], "--steps", steps, "--set", "scheduler.order=lpm"]
    one, two = (planned(capsys, *command, "--concurrency", clients)["figures"] for clients in ("1", "2"))
    assert one["finished"] == two["finished"] == one["requests"]
    assert one["output_tokens"] == two["output_tokens"]
    assert two["seconds"] < one["seconds"] < 4 or asked == "RECORDING"  # the lines come a second after each other
    assert one["queue_max"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["TRACE"], "--steps: is missing"),
        (["RECORDING", "--set", "scheduler.order=lpm"], "--set: wants --steps"),
        (["RECORDING", "--concurrency", "2"], "--concurrency: wants --steps"),
        (["TRACE", "--steps", "TRACE"], "is no table of step times"),
        (["TRACE", "--steps", "STEPS", "--set", "scheduler.ordr=lpm"], "did you mean scheduler.order?"),
        (["TRACE", "--steps", "STEPS", "--set", "scheduler.chunk_tokens=512"], "no time of the program mixed/lean/128"),
        (["--steps", "STEPS", "--requests", "0"], "requests"),
        (["TRACE", "--steps", "STEPS", "--prompt-len", "7"], "--prompt-len: describes a synthetic workload"),
        (["--steps", "STEPS", "--rate", "7", "--concurrency", "7"], "--concurrency: means nothing beside --rate"),
        (["--steps", "STEPS", "--rate", "0"], "rate"),
        (["--steps", "STEPS", "--prompt-len", "0"], "prompt_len"),
        (["--steps", "STEPS", "--output-len", "1", "2", "3"], "output_len"),
    ],
)
def test_what_cannot_be_is_a_mistake_of_the_caller_and_named(
    arguments: list[str], said: str, trace: str, recording: str, steps: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"TRACE": trace, "RECORDING": recording, "STEPS": steps}
    assert main(["plan", *(paths.get(one, one) for one in arguments)]) == 2
    assert said in capsys.readouterr().err


def test_a_bad_line_is_said_with_file_and_line(trace: str, steps: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Path(trace).open("a") as file:
        file.write('{"arrival_s": 9}\n')
    assert main(["plan", trace, "--steps", steps]) == 1
    assert f"{trace}:6: " in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(steps: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "absent", "--steps", steps]) == 1
    assert "absent" in capsys.readouterr().err


def test_the_simulated_launch_is_what_a_start_would_resolve() -> None:
    one = table()
    _, settings = launch(one, ["scheduler.max_running_requests=4"])
    resolved = resolve(one.config, one.name, one.hardware, one.model, one.weight_bytes)
    assert settings.max_rows == 4
    assert settings.num_pages == resolved.num_pages
