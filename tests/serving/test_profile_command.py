"""``radjax profile analyze``: its figures are the documents' formulas, and it says what it sees and what it cannot."""

import json
import re
import statistics as plain
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scheduler.step_record import StepRecord
from scheduler.step_statistics import Columns, Statistics, figures
from serving.commands.profile import main
from serving.commands.profile_findings import findings
from serving.commands.profile_reading import MAX_LINE, SHOWN

VLLM = {
    "batch_id": 1,
    "timestamp": 1703123456.789,
    "schedule_duration_ms": 5.2,
    "num_prefill_reqs": 3,
    "num_decode_reqs": 7,
    "total_scheduled_tokens": 903,
    "prefill_chunk_sizes": [512, 256, 128],
    "decode_chunk_sizes": [1] * 7,
    "avg_prefill_chunk_size": 298.67,
    "max_prefill_chunk_size": 512,
    "min_prefill_chunk_size": 128,
    "avg_decode_chunk_size": 1.0,
    "num_waiting_reqs": 5,
    "num_running_reqs": 10,
    "kv_cache_usage": 0.75,
}
OURS = {
    "model_run_duration_ms": 45.8,
    "total_step_duration_ms": 51.0,
    "mode": "mixed",
    "bucket": 1024,
    "padding": 121,
    "cached_tokens": 64,
    "retractions": 0,
    "receive_ms": 0.1,
    "plan_ms": 0.2,
    "launch_ms": 1.0,
    "commit_ms": 0.3,
    "emit_ms": 0.1,
}


def line(**changes: object) -> str:
    return json.dumps(VLLM | changes, separators=(",", ":"))


def file(tmp_path: Path, *lines: str, name: str = "steps.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(f"{one}\n" for one in lines))
    return str(path)


def taken(records: list[dict[str, object]]) -> Statistics:
    found = Statistics()
    for record in records:
        found.add(msgspec.convert(record, StepRecord))
    return found


durations = st.floats(0.001, 100)


@st.composite
def records(draw: st.DrawFn) -> list[dict[str, object]]:
    many: list[dict[str, object]] = []
    for number in range(draw(st.integers(1, 40))):
        chunks, decode = draw(st.lists(st.integers(1, 600), max_size=3)), draw(st.integers(0, 9))
        many.append(
            VLLM
            | OURS
            | {
                "batch_id": number,
                "schedule_duration_ms": draw(durations),
                "model_run_duration_ms": draw(durations),
                "total_step_duration_ms": draw(durations),
                "num_prefill_reqs": len(chunks),
                "num_decode_reqs": decode,
                "prefill_chunk_sizes": chunks,
                "decode_chunk_sizes": [1] * decode,
                "total_scheduled_tokens": sum(chunks) + decode,
            }
        )
    return many


@hypothesis_settings(max_examples=60, deadline=None)
@given(records())
def test_every_figure_is_the_documents_formula(many: list[dict[str, object]]) -> None:
    # document: V-3
    def of(name: str) -> list[float]:
        return [float(record[name]) for record in many]  # pyright: ignore[reportArgumentType]

    found = {figure.label: figure.value for figure in figures(taken(many))}
    schedule, model, total = (of(f"{name}_duration_ms") for name in ("schedule", "model_run", "total_step"))
    prefill, decode = sum(of("num_prefill_reqs")), sum(of("num_decode_reqs"))
    chunks = [size for record in many for size in record["prefill_chunk_sizes"]]  # pyright: ignore[reportGeneralTypeIssues]
    expected = {
        "batches": len(many),
        "schedule time, mean": plain.mean(schedule),
        "schedule time, max": max(schedule),
        "schedule time, min": min(schedule),
        "schedule time, P95": float(np.quantile(schedule, 0.95)),
        "model run, mean": plain.mean(model),
        "model run, P95": float(np.quantile(model, 0.95)),
        "scheduling share of a step": plain.mean(schedule) / plain.mean(total),
        "throughput": sum(of("total_scheduled_tokens")) / sum(total) * 1000,
        "prefill requests, mean": prefill / len(many),
        "decode requests, mean": decode / len(many),
        "prefill share": prefill / (prefill + decode) if prefill + decode else 0,
        "prefill chunk, mean": plain.mean(chunks) if chunks else 0,
        "prefill chunk, max": max(chunks, default=0),
        "prefill chunk, min": min(chunks, default=0),
        "batches over 10 ms of scheduling": sum(ms > 10 for ms in schedule),
    }
    assert {label: found[label] for label in expected} == pytest.approx(expected)


def test_a_file_without_model_run_and_step_times_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # document: V-3
    assert main(["analyze", file(tmp_path, line(), line(schedule_duration_ms=4.8))]) == 0
    told = capsys.readouterr().out
    assert re.search(r"throughput +180,600.0 tokens/s", told)
    assert "model run" not in told
    assert "scheduling share" not in told
    assert "2023-12-21 01:50:56 UTC" in told  # document: V-7


def test_lines_that_are_no_records_are_named_and_the_rest_is_analysed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # document: V-6
    path = file(
        tmp_path, line(), '{"batch_id":', "[1]", line(schedule_duration_ms="fast"), "", '{"batch_id":3}', line()
    )
    assert main(["analyze", path]) == 0
    told = capsys.readouterr()
    assert re.search(r"batches +2\n", told.out)
    complaints = told.err.splitlines()
    assert [complaint.split(":")[2] for complaint in complaints] == ["2", "3", "4", "6"]
    assert "schedule_duration_ms" in complaints[2]
    assert "missing required field `schedule_duration_ms`" in complaints[3]


def test_complaints_and_lines_are_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # documents: V-6, V-7
    path = file(tmp_path, *["x"] * 30, "y" * (3 * MAX_LINE), line())
    assert main(["analyze", path]) == 0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == SHOWN + 1
    assert told[-1].endswith("31 lines are no records")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ["empty", "RADJAX_ENABLE_SCHEDULER_PROFILING", "may the server write it", "did any request run"]),
        (["nonsense"], ["steps.jsonl:1: not a step record", "none of its 1 lines"]),
    ],
)
def test_a_file_without_records_says_what_to_look_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], words: list[str]
) -> None:
    # document: V-6
    assert main(["analyze", file(tmp_path, *lines)]) == 1
    told = capsys.readouterr().err
    assert [word for word in words if word not in told] == []


def test_a_file_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # document: V-6
    assert main(["analyze", str(tmp_path / "none.jsonl")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_two_files_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # documents: V-3, V-5
    slow, fast = line(**OURS), line(**OURS | {"total_step_duration_ms": 25.5})
    out = tmp_path / "out"
    paths = [file(tmp_path, slow, name="a.jsonl"), file(tmp_path, fast, name="b.jsonl")]
    assert main(["analyze", *paths, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"throughput +17,705.9 tokens/s +35,411.8 tokens/s +2.00", told)
    assert (out / "index.html").read_text().count("second / first") == 1
    with pytest.raises(SystemExit):
        main(["analyze", *paths, paths[0]])


def test_six_charts_and_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    # document: V-4
    many = [line(**OURS, batch_id=n, num_waiting_reqs=n) for n in range(30)]
    out = tmp_path / "out"
    assert main(["analyze", file(tmp_path, *many, name="<b>.jsonl"), "--out", str(out)]) == 0
    charts = sorted(out.glob("*.png"))
    assert len(charts) == 6
    assert all(chart.read_bytes().startswith(b"\x89PNG") for chart in charts)
    page = (out / "index.html").read_text()
    assert page.count('src="data:image/png;base64,') == page.count("<img alt=") == 6
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert "<b>.jsonl" not in page
    assert "&lt;b&gt;.jsonl" in page


def test_charts_of_a_file_without_model_runs_say_so(tmp_path: Path) -> None:
    # documents: V-3, V-4
    assert main(["analyze", file(tmp_path, line(), line()), "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 6


def test_without_matplotlib_the_figures_are_printed_and_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # document: V-6
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["analyze", file(tmp_path, line()), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert "batches" in told.out
    assert "pip install 'radjax[profile]'" in told.err


def of(**columns: Sequence[float]) -> Statistics:
    """Statistics of batches that are as the document's example but for these columns."""
    length = len(next(iter(columns.values())))
    rows = [{name: values[n] for name, values in columns.items()} for n in range(length)]
    return taken([VLLM | OURS | {"batch_id": n, "schedule_duration_ms": 0.2} | row for n, row in enumerate(rows)])


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        (
            of(padding=[3000] * 9),
            "Padding: 77% of what was computed was padding, most of it in mixed batches of bucket",
        ),
        (of(schedule_duration_ms=[9.0] * 9, total_step_duration_ms=[20.0] * 9), "Scheduling takes 45% of a step"),
        (
            of(schedule_duration_ms=[1.0] * 8 + [44.0]),
            "1 of 9 batches took over 10 ms to schedule, the worst 44.0 ms in",
        ),
        (of(schedule_duration_ms=[0.2] * 100 + [2.0] * 100), "jumps from 0.20 to 2.00 ms .* around batch 100;"),
        (of(num_waiting_reqs=list(range(80))), "The queue grows: 9.5 requests waited"),
        (
            of(num_decode_reqs=[4] * 5 + [0] * 6 + [4], num_prefill_reqs=[1] * 12, num_running_reqs=[5] * 12),
            "Decoding stood still for 6 batches in a row, 306 ms from batch 5",
        ),
        (of(retractions=[0, 2, 1]), "3 requests were retracted for want of KV pages; usage reached 75%"),
        (of(kv_cache_usage=[0.5, 0.99]), "at least 95% full in 50% of the batches"),
    ],
)
def test_what_stands_out_is_said_in_words(statistics: Statistics, words: str) -> None:
    # document: V-5
    (found,) = findings(statistics)
    assert re.search(words, found), found


def test_a_healthy_run_gives_no_words() -> None:
    # document: V-5
    assert findings(of(num_waiting_reqs=[3] * 200)) == []


@given(st.integers(0, 300))
def test_columns_keep_an_even_sample_of_bounded_size(rows: int) -> None:
    # document: V-7
    columns = Columns(("n",), 16)
    for number in range(rows):
        columns.add((number,))
    kept = columns["n"].tolist()
    assert kept == list(range(0, rows, columns.stride))
    assert len(kept) <= 16
    assert rows < 16 * columns.stride or rows <= 16
    assert columns.stride == 1 or len(kept) >= 8
