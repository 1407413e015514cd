"""Two hundred prompts over HTTP on every mesh, on replicas and on two hosts: what one device says.

Each with prompts computed in pieces, prefixes that are used again, and a pool so small that requests are retracted.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import httpx2
import pytest

from tests.serving.process.real_service import launched, started
from tests.serving.process.service import ROOT, Service, free_ports
from tests.serving.process.test_service import metric

pytestmark = pytest.mark.slow

NUM_PROMPTS = 200
OUTPUT_TOKENS = 24
TOP = 20
BYTES = 256
NEAR = 1e-3
"""Share of the range of logits within which the two best are a tie."""
FORCED = 1e-4
"""Share of the range by which the log-probabilities of the same tokens may differ."""
TIES = 0.01
"""Share of the prompts that may have one."""
SETTINGS = (
    "model.dtype=float32",
    "model.load_format=dummy",
    "cache.max_total_tokens=384",
    "scheduler.new_token_ratio=0.05",
    "scheduler.max_running_requests=8",
    "scheduler.chunk_tokens=64",
    "scheduler.check=every_step",
)
ONE_HOST = {
    "dense": (
        ("tensor=2",),
        ("tensor=4",),
        ("tensor=8",),
        ("stages=2",),
        ("stages=4",),
        ("tensor=2", "stages=2"),
        ("replicas=2",),
    ),
    "experts": (("expert=2",), ("expert=4",), ("tensor=2", "expert=2")),
}


class Said(NamedTuple):
    """An answer."""

    prompt: list[int]
    output: list[int]
    top: list[list[float]]
    """Of every token: the best log-probabilities, the best first."""


def prompts() -> list[list[int]]:
    """Short and long ones; many begin alike."""
    chance = Random(11)
    openings = [[chance.randrange(3, BYTES) for _ in range(length)] for length in (0, 20, 48, 90)]
    return [
        [*openings[number % 4], *(chance.randrange(3, BYTES) for _ in range(3 + number % 9))]
        for number in range(NUM_PROMPTS)
    ]


def ask(service: Service, prompt: list[int], new: int, **fields: object) -> dict[str, Any]:
    """What ``/generate`` answers, greedily."""
    sampling = {"max_new_tokens": new, "temperature": 0, "ignore_eos": True}
    asked = {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True, **fields}
    reply = httpx2.post(f"{service.url}/generate", json=asked, timeout=300.0)
    assert reply.status_code == 200, reply.text
    return reply.json()


def say(service: Service, prompt: list[int]) -> Said:
    reply = ask(service, prompt, OUTPUT_TOKENS, top_logprobs_num=TOP)
    best = [[entry[0] for entry in token] for token in reply["meta_info"]["output_top_logprobs"]]
    return Said(prompt, reply["output_ids"], best)


def said(service: Service) -> list[Said]:
    """To every prompt, sixteen at a time; under all that makes schedules differ."""
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda prompt: say(service, prompt), prompts()))
    figures = service.client.get("/metrics").text
    assert metric(figures, "radjax_num_retracted_requests_total") > 0
    assert metric(figures, "radjax_prefix_cache_hits_total") > 0
    assert metric(figures, "radjax_leaks_total") == 0
    return answers


def forced(service: Service, one: Said) -> list[float]:
    """Log-probabilities of the tokens of an answer, given those before it."""
    reply = ask(service, [*one.prompt, *one.output], 1, logprob_start_len=0)
    scored = reply["meta_info"]["input_token_logprobs"]
    return [entry[0] for entry in scored[-len(one.output) :]]


def is_tie(one: Said, other: Said) -> bool:
    """Whether the answers differ, first where two tokens are equally good; other differences fail."""
    if one.output == other.output:
        return False
    at = next(place for place, pair in enumerate(zip(one.output, other.output, strict=True)) if pair[0] != pair[1])
    best, second, *_, least = one.top[at]
    # the best twenty span less than all do
    assert best - second <= NEAR * (best - least), (one.prompt, at, best, second, least)
    return True


def compare(service: Service, reference: list[Said], scores: list[list[float]]) -> None:
    """Fail where the service says something else than the reference."""
    answers = said(service)
    ties = [number for number, pair in enumerate(zip(reference, answers, strict=True)) if is_tie(*pair)]
    print(f"{len(ties)} of {len(reference)} answers differ after a tie")
    assert len(ties) <= TIES * len(reference)
    for number in {*ties, *range(0, len(reference), 20)}:
        one = reference[number]
        span = max(row[0] - row[-1] for row in one.top)
        for got, want in zip(forced(service, one), scores[number], strict=True):
            assert abs(got - want) <= FORCED * span, (number, got, want, span)


@pytest.fixture(scope="module", params=[*ONE_HOST])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def launch_file(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model of four layers, with experts or without."""
    folder = tmp_path_factory.mktemp("tiny")
    shutil.copytree(ROOT / "configs" / "shapes" / "qwen3-moe-tiny", folder / "model")
    if family == "dense":
        config = folder / "model" / "config.json"
        shape = json.loads(config.read_text())
        config.write_text(json.dumps({**shape, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}))
    file = folder / "tiny.yaml"
    file.write_text(f"model: {{source: {folder / 'model'}}}\n")
    return file


@pytest.fixture(scope="module")
def reference(launch_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Said], list[list[float]]]:
    """What one device says, and the scores of it."""
    with launched(launch_file, tmp_path_factory.mktemp("one"), *SETTINGS) as service:
        answers = said(service)
        return answers, [forced(service, one) for one in answers]


@contextlib.contextmanager
def two_hosts(launch_file: Path, folder: Path) -> Iterator[Service]:
    """Two processes with two devices each; the one that answers."""
    both = (
        *(*SETTINGS, "parallel.tensor=4", "distributed.hosts=2"),
        f"distributed.coordinator=127.0.0.1:{free_ports(3)}",
    )
    (folder / "1").mkdir()
    with (
        started(launch_file, folder / "1", *both, "distributed.rank=1"),
        launched(launch_file, folder, *both) as first,
    ):
        yield first


def test_every_mesh_says_what_one_device_says(
    family: str, launch_file: Path, reference: tuple[list[Said], list[list[float]]], tmp_path: Path
) -> None:
    # document: O-26, O-27, O-29
    for sizes in ONE_HOST[family]:
        folder = tmp_path / "-".join(sizes)
        folder.mkdir()
        print(family, *sizes)
        with launched(launch_file, folder, *SETTINGS, *(f"parallel.{size}" for size in sizes)) as service:
            compare(service, *reference)


def test_two_hosts_say_what_one_device_says(
    launch_file: Path, reference: tuple[list[Said], list[list[float]]], tmp_path: Path
) -> None:
    with two_hosts(launch_file, tmp_path) as service:
        compare(service, *reference)
