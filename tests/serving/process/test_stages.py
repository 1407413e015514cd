"""Pipeline stages over HTTP: a service of two stages answers as a service of one."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.serving.process.real_service import launched
from tests.serving.process.service import ROOT

# document: O-7, O-10

SETTINGS = (
    "model.dtype=float32",
    "model.context_length=512",
    # too few pages for all, prompts longer than a step, and one prefix for most
    "cache.max_total_tokens=640",
    "scheduler.max_running_requests=4",
    "scheduler.chunk_tokens=64",
    "scheduler.new_token_ratio=0.05",
    "scheduler.new_token_ratio_floor=0.05",
    "scheduler.check=every_step",
)
PROMPTS = [[*range(3, 150), *range(20 * i, 20 * i + 30 * (i % 4) + 5)] for i in range(1, 7)]


def answers(folder: Path, *settings: str) -> tuple[list[list[int]], list[dict[str, int]], str]:
    """Tokens of every prompt, what it took, and the banner."""
    folder.mkdir()
    with (
        launched(ROOT / "configs" / "qwen3-moe-tiny.yaml", folder, *SETTINGS, *settings) as service,
        ThreadPoolExecutor(len(PROMPTS)) as threads,
    ):

        def ask(prompt: list[int]) -> tuple[list[int], dict[str, int]]:
            sampling = {"max_new_tokens": 120, "temperature": 0, "ignore_eos": True}
            reply = httpx2.post(
                f"{service.url}/generate", json={"input_ids": prompt, "sampling_params": sampling}, timeout=300.0
            )
            assert reply.status_code == 200, reply.text
            said = reply.json()
            return said["output_ids"], said["meta_info"]

        said = list(threads.map(ask, PROMPTS))
        assert service.status("/health") == 200
        return [tokens for tokens, _ in said], [took for _, took in said], service.said


@pytest.mark.slow
def test_a_service_of_two_stages_with_shards_answers_as_one_without(tmp_path: Path) -> None:
    one, _, _ = answers(tmp_path / "one")
    two, took, banner = answers(tmp_path / "two", "parallel.stages=2", "parallel.tensor=2")
    assert two == one
    assert any(figures["cached_tokens"] for figures in took)
    assert any(figures["num_retractions"] for figures in took)
    assert re.search(r"scheduler\.loop +pp +\(2 stages", banner)
