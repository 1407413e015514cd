"""A service that is killed while it writes to the storage: the next one finds what was whole, and says the same."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from scheduler.file_storage import SUFFIX, UNFINISHED
from tests.serving.process.real_service import engine_pid, launched
from tests.serving.process.service import ROOT, Service, body, write_model

# document: O-26

PAGE, PREFIX, OUTPUT = 4, 40, 6
WHOLE = (PREFIX + OUTPUT - 1) // PAGE
"""Pages of a prompt and its answer; the KV of the last token is never computed."""
SETTINGS = (
    "model.dtype=float32",
    "model.context_length=96",
    f"cache.page_size={PAGE}",
    "cache.max_total_tokens=96",
    "cache.host=true",
    "cache.host_ratio=4",
    "cache.storage_prefetch=wait_complete",
    "cache.storage_prefetch_threshold=8",
    "scheduler.max_running_requests=2",
    "scheduler.chunk_tokens=16",
    "scheduler.check=every_step",
)
SOURCE = np.random.default_rng(5)
PREFIXES: list[list[int]] = [SOURCE.integers(3, 250, PREFIX).tolist() for _ in range(3)]
BY_SOURCE = "radjax_prompt_tokens_by_source_total{"


def ask(service: Service, prompt: list[int]) -> tuple[list[int], int]:
    """The answer and how much of the prompt was cached."""
    reply: dict[str, Any] = service.generate(prompt, OUTPUT).json()
    return reply["output_ids"], reply["meta_info"]["cached_tokens"]


def kill_while_it_writes(service: Service, storage: Path) -> Path:
    """Kill the engine at a moment when a page is being written; the file that it leaves."""
    pid, deadline = engine_pid(service), time.monotonic() + 60.0
    while time.monotonic() < deadline:
        if not any(storage.glob(f"*{UNFINISHED}")):
            continue
        os.kill(pid, signal.SIGSTOP)  # it may have finished the file meanwhile: look while it stands still
        if unfinished := list(storage.glob(f"*{UNFINISHED}")):
            os.kill(pid, signal.SIGKILL)
            assert service.wait() != 0
            return unfinished[0]
        os.kill(pid, signal.SIGCONT)
    raise AssertionError("no page was seen being written")


@contextlib.contextmanager
def kept_busy(service: Service) -> Iterator[None]:
    """New prompts one after the other, all of which are written to the storage, until the service is gone."""

    def feed() -> None:
        more = np.random.default_rng(6)
        with contextlib.suppress(httpx2.TransportError), httpx2.Client(timeout=60.0) as client:
            while True:
                prompt: list[int] = more.integers(3, 250, PREFIX).tolist()
                client.post(f"{service.url}/generate", json=body(prompt, OUTPUT)).raise_for_status()

    with ThreadPoolExecutor(1) as threads:
        feeding = threads.submit(feed)
        yield
    assert not feeding.cancelled()


def from_storage(service: Service) -> float:
    """Prompt tokens that the storage has saved, as the metrics say."""
    lines = service.client.get("/metrics").text.splitlines()
    own = [line for line in lines if line.startswith(BY_SOURCE) and 'source="storage"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in own)


def test_a_service_killed_while_it_writes_finds_its_prefixes_again_and_says_the_same(tmp_path: Path) -> None:
    storage, model = tmp_path / "storage", tmp_path / "model"
    shutil.copytree(ROOT / "tests" / "golden" / "models" / "llama", model)
    write_model(model)
    launch_file = tmp_path / "tiny.yaml"
    launch_file.write_text(f"model: {{source: {model}}}\n")
    settings = (*SETTINGS, f"cache.storage_dir={storage}")
    with launched(launch_file, tmp_path, *settings) as service:
        expected = [ask(service, prompt)[0] for prompt in PREFIXES]
        # all of them, so that the kill can hit no page that is asked for again
        deadline = time.monotonic() + 60.0
        while len(list(storage.glob(f"*{SUFFIX}"))) < len(PREFIXES) * WHOLE:
            assert time.monotonic() < deadline, "the prefixes were never written whole"
            time.sleep(0.01)
        with kept_busy(service):
            unfinished = kill_while_it_writes(service, storage)
    # worse than what a killed process leaves: a name that promises a page, before all of it has reached the disk
    data = unfinished.read_bytes()
    unfinished.with_suffix(SUFFIX).write_bytes(data[: len(data) // 2])
    with launched(launch_file, tmp_path, *settings) as service:
        again = [ask(service, prompt) for prompt in PREFIXES]
        assert [tokens for tokens, _ in again] == expected
        assert all(cached >= PREFIX - PAGE for _, cached in again)
        deadline = time.monotonic() + 10.0
        while from_storage(service) < len(PREFIXES) * (PREFIX - PAGE):
            assert time.monotonic() < deadline, "the metrics do not say what the storage saved"
            time.sleep(0.05)
        assert not list(storage.glob(f"*{UNFINISHED}"))
