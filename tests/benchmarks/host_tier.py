"""The host tier on ``prefix`` with a pool that is too small for the prefixes, against the same pool without it.

``python -m tests.benchmarks.host_tier``: the real model of ``configs/smollm2-135m.yaml``, offline. The prompts are
those of the workload ``prefix`` with more prefixes than the pool holds, which take turns, so that each is evicted
before it comes again. Texts may differ where bfloat16 rounds otherwise in steps of another shape; tests hold float32.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from configs.load import load
from scheduler.commands import Batch, Finished, Generate, SamplingParams, Shutdown
from scheduler.local_channel import LocalChannel, LocalClient
from scheduler.main import open_engine
from serving.bench.workloads import WORKLOADS, Workload

LAUNCH_FILE: Final = Path(__file__).parents[2] / "configs" / "smollm2-135m.yaml"
VOCAB_SIZE: Final = 30_000


@dataclass(slots=True, frozen=True)
class Run:
    """One engine's pass over the prompts."""

    seconds: float
    output: dict[str, list[int]]
    cached_tokens: int

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second."""
        return sum(len(tokens) for tokens in self.output.values()) / self.seconds


def answer(client: LocalClient, prompts: list[list[int]], output_len: int) -> Run:
    """Send all prompts at once and wait for the last answer."""
    params = SamplingParams(max_new_tokens=output_len, temperature=0.0, ignore_eos=True, seed=1)
    start = time.perf_counter()
    for number, prompt in enumerate(prompts):
        client.send(Generate(rid=f"r{number}", prompt=prompt, params=params, stream=False))
    output: dict[str, list[int]] = {}
    cached = 0
    while len(output) < len(prompts):
        for batch in client.receive(None):
            for message in batch.messages if isinstance(batch, Batch) else ():
                assert isinstance(message, Finished), message
                output[message.rid] = message.delta.tokens
                cached += message.cached_tokens
    return Run(time.perf_counter() - start, output, cached)


def measure(workload: Workload, pool_tokens: int, seed: int, *, host: bool) -> Run:
    """Start an engine, wait until everything is compiled, warm it up, and let it answer all prompts."""
    overrides = [
        f"cache.max_total_tokens={pool_tokens}",
        f"cache.host={str(host).lower()}",
        "cache.host_ratio=8",
        "model.context_length=1024",
        f"scheduler.max_running_requests={workload.concurrency}",
    ]
    channel = LocalChannel()
    client = channel.client(0)
    running = open_engine(load(LAUNCH_FILE, overrides, {}).config, "host-tier", channel, lambda progress: None)
    running.setup.programs.wait_all()
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        answer(client, workload.prompts(-1, VOCAB_SIZE)[:2], workload.output_len)
        return answer(client, workload.prompts(seed, VOCAB_SIZE), workload.output_len)
    finally:
        client.send(Shutdown())
        thread.join()


def main(argv: list[str]) -> int:
    """Measure both in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=WORKLOADS["prefix"].num_prompts)
    parser.add_argument("--prefixes", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--pool-tokens", type=int, default=3072)
    arguments = parser.parse_args(argv)
    workload = replace(
        WORKLOADS["prefix"],
        num_prompts=arguments.prompts,
        num_prefixes=arguments.prefixes,
        concurrency=arguments.concurrency,
    )
    ratios: list[float] = []
    rounds: list[dict[str, float]] = []
    for seed in range(100, 100 + arguments.rounds):
        without = measure(workload, arguments.pool_tokens, seed, host=False)
        with_tier = measure(workload, arguments.pool_tokens, seed, host=True)
        same = sum(tokens == with_tier.output[rid] for rid, tokens in without.output.items())
        print(f"seed {seed}: cached prompt tokens without {without.cached_tokens}, with {with_tier.cached_tokens}")
        ratios.append(with_tier.tokens_per_s / without.tokens_per_s)
        rounds.append({"without_tokens_per_s": without.tokens_per_s, "with_tokens_per_s": with_tier.tokens_per_s})
        speeds = f"without {without.tokens_per_s:.1f}, with {with_tier.tokens_per_s:.1f} output tokens a second"
        print(
            f"seed {seed}: {speeds}, ratio {ratios[-1]:.2f}; {same} of {workload.num_prompts} texts equal", flush=True
        )
    print(f"median ratio {statistics.median(ratios):.2f}")
    asked = {"pool_tokens": arguments.pool_tokens, "prefixes": arguments.prefixes, "prompts": arguments.prompts}
    print(json.dumps({**asked, "cores": os.cpu_count(), "ratio": statistics.median(ratios), "rounds": rounds}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
