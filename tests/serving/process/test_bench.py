"""The load generator: what it sends, and that its sums are true."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.bench.client import Answer
from serving.bench.load import percentile_ms, summary, table
from serving.bench.workloads import LOWEST_ID, WORKLOADS
from serving.commands import bench
from tests.serving.process.service import serving

SECONDS = st.floats(0.001, 10)


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_prompts_have_their_lengths_share_their_prefixes_and_depend_on_the_seed_alone(name: str) -> None:
    workload = WORKLOADS[name]
    prompts = workload.prompts(7, 2000)
    assert prompts == workload.prompts(7, 2000)
    assert prompts != workload.prompts(8, 2000)
    assert {len(prompt) for prompt in prompts} == {workload.prefix_len + workload.prompt_len}
    assert all(LOWEST_ID <= token < 2000 for prompt in prompts for token in prompt)
    heads = {tuple(prompt[: workload.prefix_len]) for prompt in prompts}
    assert len(heads) == max(1, workload.num_prefixes)


@given(st.lists(SECONDS, min_size=2, max_size=50), st.integers(1, 98))
def test_percentiles_lie_between_the_extremes_and_do_not_fall(seconds: list[float], percent: int) -> None:
    low, high = percentile_ms(seconds, percent), percentile_ms(seconds, percent + 1)
    assert 1000 * min(seconds) - 0.01 <= low <= high <= 1000 * max(seconds) + 0.01


def test_figures_of_two_known_answers() -> None:
    one = Answer(prompt_tokens=10, output_tokens=3, chunk_s=[0.1, 0.2, 0.4], end_s=0.4)
    two = Answer(prompt_tokens=20, output_tokens=2, chunk_s=[0.3, 0.4], end_s=0.5)
    figures = summary("x", [one, two], failed=1, seconds=0.5)
    assert (figures.completed, figures.failed) == (2, 1)
    assert (figures.out_tok_s, figures.all_tok_s) == (10.0, 70.0)
    assert figures.ttft_p50_ms == 200.0
    assert figures.itl_p50_ms == 100.0
    assert figures.tpot_p50_ms == 175.0
    assert len({len(line) for line in list(table([figures]))[1:]}) == 1


def test_bench_serve_measures_a_running_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path, pace="0.002") as service:
        service.wait_for("/readyz", 200)
        code = bench.main(["serve", "eight", "--url", service.url, "--vocab-size", str(LOWEST_ID + 1)])
        written = capsys.readouterr()
        assert code == 0, written.err
        figures = json.loads(written.out)
        assert (figures["completed"], figures["failed"]) == (32, 0)
        assert figures["output_tokens"] == 32 * 64
        assert figures["prompt_tokens"] == 32 * 128
        assert 1 < figures["itl_p50_ms"] < 1000
        assert "eight" in written.err


def test_bench_says_clearly_that_no_server_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["serve", "single", "--url", "http://127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9" in capsys.readouterr().err
