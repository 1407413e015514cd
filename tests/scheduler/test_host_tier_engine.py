"""The tiers under a real model on this machine: the same text with them as without, and again after a restart."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from configs.schema import Cache, EngineConfig, Model, Scheduler
from scheduler.commands import Batch, Delta, Finished, Generate, SamplingParams, Shutdown, StepStats, TierStats
from scheduler.local_channel import LocalChannel
from scheduler.main import open_engine
from scheduler.observe import Event

# document: O-19, O-20, O-26

TINY = Path(__file__).parents[1] / "golden" / "models" / "llama"
SOURCE = np.random.default_rng(3)
PREFIXES = [SOURCE.integers(3, 500, 40).tolist() for _ in range(4)]
PROMPTS = [PREFIXES[index % 4] + [5 + index] for index in range(12)]
"""Each prefix three times, and by the time it comes again the device has dropped it."""


@dataclass
class Figures:
    """The newest of the engine's."""

    stats: list[StepStats] = field(default_factory=list)

    def observe(self, event: Event) -> None:
        if isinstance(event, StepStats):
            self.stats = [event]

    @property
    def tiers(self) -> TierStats:
        tiers = self.stats[0].tiers
        assert tiers is not None
        return tiers


def config(**cache: object) -> EngineConfig:
    return EngineConfig(
        model=Model(source=str(TINY), dtype="float32", context_length=96),
        cache=Cache(page_size=4, max_total_tokens=96, **cache),  # pyright: ignore[reportArgumentType]
        scheduler=Scheduler(max_running_requests=2, chunk_tokens=16, check="every_step"),
    )


def answers(setting: EngineConfig, prompts: Sequence[list[int]], figures: Figures) -> list[list[int]]:
    """Greedy continuations, one request after the other."""
    channel = LocalChannel()
    running = open_engine(setting, "tiny", channel, lambda progress: None, (figures,))
    client = channel.client(0)
    thread = threading.Thread(target=running.run)
    thread.start()
    found: list[list[int]] = []
    try:
        for index, prompt in enumerate(prompts):
            params = SamplingParams(max_new_tokens=4, temperature=0.0, ignore_eos=True, seed=1)
            client.send(Generate(rid=f"r{index}", prompt=prompt, params=params, stream=False))
            messages = [m for batch in client.receive(60) if isinstance(batch, Batch) for m in batch.messages]
            [finished] = [message for message in messages if isinstance(message, Finished)]
            assert isinstance(finished.delta, Delta)
            found.append(finished.delta.tokens)
    finally:
        client.send(Shutdown())
        thread.join(60)
    assert not thread.is_alive()
    return found


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return answers(config(radix=False), PROMPTS, Figures())


def test_what_the_device_drops_comes_back_from_host_memory(expected: list[list[int]]) -> None:
    figures = Figures()
    assert answers(config(host=True, host_ratio=4, host_write_policy="write_back"), PROMPTS, figures) == expected
    assert figures.tiers.cached_host == 8 * 40
    assert figures.tiers.host_used <= figures.tiers.host_total == 96 * 4


def test_a_restart_finds_its_prefixes_in_the_storage_and_no_damaged_page(
    tmp_path: Path, expected: list[list[int]]
) -> None:
    stored = config(
        host=True, storage_dir=str(tmp_path), storage_prefetch="wait_complete", storage_prefetch_threshold=8
    )
    first, second, third = Figures(), Figures(), Figures()
    assert answers(stored, PROMPTS, first) == expected
    assert first.tiers.cached_host + first.tiers.cached_storage == 8 * 40
    files = sorted(tmp_path.glob("*.kv"))
    assert len(files) >= 4 * 10
    assert answers(stored, PROMPTS[:4], second) == expected[:4]
    assert second.tiers.cached_storage == 4 * 40
    for number, path in enumerate(sorted(tmp_path.glob("*.kv"))):
        data = bytearray(path.read_bytes())
        data[-1 - number] ^= 1
        path.write_bytes(bytes(data) if number % 2 else bytes(data[: len(data) // 2]))
    assert answers(stored, PROMPTS[:4], third) == expected[:4]
    assert third.tiers.cached_storage == 0
