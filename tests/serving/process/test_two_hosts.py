"""Two processes with two devices each are one engine: they say what one device says, and end together."""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import httpx2
import pytest

from serving.launcher import ENGINE_MODULE
from tests.serving.process.real_service import engine_pid, launched, started
from tests.serving.process.service import ROOT, Service, body, free_ports, write_model
from tests.serving.process.test_service import metric

TIMEOUT_S = 4.0
GRACE_S = 6.0
NUM_PROMPTS = 16
LONG, SHORT = 96, 12
"""Output tokens."""
VOCABULARY = 256
FEW = 16
"""Tokens of a prompt whose output is long."""
SETTINGS = (
    # so that other shards make no difference that greedy tokens could show
    "model.dtype=float32",
    # no two long outputs fit to their ends: some requests are retracted
    "cache.max_total_tokens=192",
    "scheduler.new_token_ratio=0.05",
    "scheduler.max_running_requests=4",
    # longer prompts are computed in pieces
    "scheduler.chunk_tokens=64",
    "scheduler.check=every_step",
)


def prompts() -> list[list[int]]:
    """Short and long ones; those that follow each other begin alike, so that prefixes are used again."""
    chance = Random(7)
    openings = [[chance.randrange(3, VOCABULARY) for _ in range(length)] for length in (0, 20, 48, 90)]
    return [
        [*openings[number * 4 // NUM_PROMPTS], *(chance.randrange(3, VOCABULARY) for _ in range(3 + number % 9))]
        for number in range(NUM_PROMPTS)
    ]


def say(service: Service, prompt: list[int]) -> list[int]:
    asked = body(prompt, LONG if len(prompt) < FEW else SHORT)
    reply = httpx2.post(f"{service.url}/generate", json=asked, timeout=120.0)
    assert reply.status_code == 200, reply.text
    return reply.json()["output_ids"]


def said(service: Service) -> list[list[int]]:
    """What is said to every prompt, eight at a time; with all that makes schedules differ."""
    with ThreadPoolExecutor(8) as threads:
        outputs = list(threads.map(lambda prompt: say(service, prompt), prompts()))
    figures = service.client.get("/metrics").text
    assert metric(figures, "radjax_num_retracted_requests_total") > 0
    assert metric(figures, "radjax_prefix_cache_hits_total") > 0
    assert metric(figures, "radjax_leaks_total") == 0
    return outputs


@pytest.fixture(scope="module")
def launch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("llama", tmp_path_factory.mktemp("tiny"))


def written(model: str, folder: Path) -> Path:
    """A launch file for a tiny model."""
    shutil.copytree(ROOT / "tests" / "golden" / "models" / model, folder / "model")
    write_model(folder / "model")
    file = folder / "tiny.yaml"
    file.write_text(f"model: {{source: {folder / 'model'}}}\n")
    return file


@contextlib.contextmanager
def two_hosts(
    launch_file: Path, folder: Path, *mesh: str, module: str = ENGINE_MODULE
) -> Iterator[tuple[Service, Service]]:
    """Host 0, ready, and host 1."""
    both = (
        *(*SETTINGS, *(mesh or ("parallel.tensor=4",)), "distributed.hosts=2", f"distributed.timeout_s={TIMEOUT_S}"),
        *(f"distributed.coordinator=127.0.0.1:{free_ports(3)}", "distributed.check_plans=4"),
    )
    for name in ("0", "1"):
        (folder / name).mkdir()
    with (
        started(launch_file, folder / "1", *both, "distributed.rank=1", module=module) as other,
        launched(launch_file, folder / "0", *both, module=module) as first,
    ):
        yield first, other


@contextlib.contextmanager
def kept_busy(service: Service) -> Iterator[list[str]]:
    """A stream that would never end; how it ended, afterwards."""
    begun, ends = threading.Event(), list[str]()

    def read() -> None:
        fields = body([5, 6, 7], 200, stream=True)
        with (
            httpx2.Client(timeout=60.0) as client,
            client.stream("POST", f"{service.url}/generate", json=fields) as response,
        ):
            for line in response.iter_lines():
                begun.set()
                ends.append(line)

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(60)
    yield ends
    thread.join()


def kill(service: Service) -> None:
    """A whole host at once."""
    engine = engine_pid(service)
    service.process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.kill(engine, signal.SIGKILL)


def test_two_hosts_say_what_one_device_says_and_when_one_is_killed_the_other_ends(
    launch_file: Path, tmp_path: Path
) -> None:
    # document: O-27
    (tmp_path / "one").mkdir()
    with launched(launch_file, tmp_path / "one", *SETTINGS) as service:
        one = said(service)
    with two_hosts(launch_file, tmp_path) as (first, other):
        assert said(first) == one
        with kept_busy(first) as ends:
            killed_s = time.monotonic()
            kill(other)
        assert first.wait() == 1
        assert time.monotonic() - killed_s < TIMEOUT_S + GRACE_S
        assert "error" in "".join(ends[-4:])
        # alone, or as what an engine died of that could not go on without it
        assert "host 1 is lost: nothing was heard of it for" in first.said.partition("radjax: error: ")[2]
        assert f"(distributed.timeout_s is {TIMEOUT_S:g})" in first.said


@pytest.mark.slow
def test_when_host_0_is_killed_the_other_ends_and_says_so(launch_file: Path, tmp_path: Path) -> None:
    with two_hosts(launch_file, tmp_path) as (first, other):
        assert say(first, [5, 6, 7])
        killed_s = time.monotonic()
        kill(first)
        assert other.wait() > 0
        assert time.monotonic() - killed_s < TIMEOUT_S + GRACE_S
        assert "host 0 is lost: nothing was heard of it for" in other.said


@pytest.mark.slow
def test_an_engine_that_plans_something_else_ends_the_service_with_both_plans_in_the_log(
    launch_file: Path, tmp_path: Path
) -> None:
    with two_hosts(launch_file, tmp_path, module="tests.serving.process.differing_engine") as (first, other):
        assert say(first, [5, 6, 7])
        # a prompt of one piece on host 0, and of several on host 1
        with contextlib.suppress(httpx2.HTTPError, AssertionError):
            say(first, list(range(3, 43)))
        assert (first.wait(), other.wait()) == (1, 1)
        for host in (first, other):
            assert "differs between host" in host.said
            assert "pieces=[[2,0,40,true]]" in host.said
            assert "pieces=[[2,0,16,false]]" in host.said


@pytest.mark.slow
def test_experts_on_two_hosts_say_what_one_device_says(tmp_path: Path) -> None:
    mixture = written("qwen3-moe", tmp_path)
    (tmp_path / "one").mkdir()
    with launched(mixture, tmp_path / "one", *SETTINGS) as service:
        one = said(service)
    with two_hosts(mixture, tmp_path, "parallel.expert=2", "parallel.tensor=2") as (first, other):
        assert said(first) == one
        refused = first.client.post("/start_expert_distribution_record")
        assert "over hosts" in refused.text
        first.signal(signal.SIGTERM)
        assert (first.wait(), other.wait()) == (0, 0), first.said + other.said
