"""Two replicas of the real model behind one address say what one says, and the work is shared."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.compiling import shipped_to_children
from tests.serving.process.real_service import launched
from tests.serving.process.service import ROOT, Service
from tests.serving.process.test_replicas import series
from tests.serving.process.test_service import metric

pytestmark = [pytest.mark.model, pytest.mark.slow]

SETTINGS = (
    # so that other batches make no difference that greedy text could show
    "model.dtype=float32",
    "model.context_length=1024",
    "cache.page_size=16",
    # eight requests do not fit to their ends: some are retracted
    "cache.max_total_tokens=512",
    "scheduler.new_token_ratio=0.05",
    "scheduler.max_running_requests=8",
    # longer prompts are computed in pieces
    "scheduler.chunk_tokens=64",
    "scheduler.check=every_step",
)
OPENINGS = (
    "A short history of the lighthouse and of the people who kept its lamp burning through the winter storms: ",
    "Ingredients: flour, two eggs, butter, a pinch of salt. Method: ",
    "def fibonacci(n):\n    ",
    "",
)
SUBJECTS = ("The first", "Once upon a time", "In 1905", "My cat", "2 + 2 =", "Paris", "Water", "To be", "Red", "Why")
PROMPTS = [
    opening + subject + " and then" * (number % 3) * 20
    for number, (opening, subject) in enumerate(itertools.product(OPENINGS, SUBJECTS))
]


def say(service: Service, prompt: str) -> str:
    fields = {"model": "smollm2-135m", "prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    reply = httpx2.post(f"{service.url}/v1/completions", json=fields, timeout=120.0)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["text"]


def said_by(folder: Path, replicas: int) -> tuple[list[str], str]:
    """What is said to every prompt, to some twice, sixteen at a time; and what the operator saw."""
    folder.mkdir()
    with (
        shipped_to_children(),
        launched(ROOT / "configs/smollm2-135m.yaml", folder, *SETTINGS, f"parallel.replicas={replicas}") as service,
        ThreadPoolExecutor(16) as threads,
    ):
        texts = list(threads.map(lambda prompt: say(service, prompt), [*PROMPTS, *PROMPTS[::4]]))
        figures = service.client.get("/metrics").text
        assert metric(figures, "radjax_num_retracted_requests_total") > 0
        assert metric(figures, "radjax_prefix_cache_hits_total") > 0
        assert metric(figures, "radjax_leaks_total") == 0
        if replicas > 1:
            shares = series(service, "radjax_step_tokens_total")
            assert min(shares.values()) > 0.2 * sum(shares.values()), shares
    return texts, service.said


def test_two_replicas_say_what_one_says(tmp_path: Path) -> None:
    # document: O-4, O-29
    one, _ = said_by(tmp_path / "one", 1)
    two, shown = said_by(tmp_path / "two", 2)
    assert two == one
    assert "2, each as above" in shown
