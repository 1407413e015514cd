"""Two replicas of 16 rows against one engine of 16 rows, on the same cores, on the workload ``many``.

``python -m tests.benchmarks.replicas``: both services of the real model run side by side, and take turns; the one that
is not asked does nothing. No gain is to be expected of two engines that share the cores of one: what the ratio lacks
to 1 is what a second one costs. Prints one line a round and then JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from serving.bench.client import Server, model_name
from serving.bench.load import Target, run, warm_up
from serving.bench.workloads import WORKLOADS
from tests.serving.process.real_service import launched
from tests.serving.process.service import ROOT, Service
from tests.serving.process.test_service import metric

ROWS: Final = 16
VOCAB_SIZE: Final = 30_000
QUIET_S: Final = 10.0
"""Without a new program all are taken for compiled."""


@contextlib.contextmanager
def serving(folder: Path, replicas: int, *settings: str) -> Iterator[Service]:
    """A service of the real model whose programs are all there."""
    folder.mkdir()
    fixed = (f"parallel.replicas={replicas}", f"scheduler.max_running_requests={ROWS}", "model.context_length=1024")
    with launched(ROOT / "configs/smollm2-135m.yaml", folder, *fixed, *settings) as service:
        compiled, since_s = -1.0, time.monotonic()
        while time.monotonic() - since_s < QUIET_S:
            now = metric(service.client.get("/metrics").text, "radjax_compiled_programs_total")
            if now != compiled:
                compiled, since_s = now, time.monotonic()
            time.sleep(0.5)
        yield service


async def measure(services: dict[int, Service], rounds: int) -> dict[int, list[float]]:
    """Output tokens a second of each service, round by round in turns."""
    workload, found = WORKLOADS["many"], {replicas: list[float]() for replicas in services}
    targets = {replicas: Server(service.url, None) for replicas, service in services.items()}
    for number in range(rounds + 1):
        for replicas, server in targets.items():
            target = Target(server, await model_name(server), VOCAB_SIZE)
            if not number:
                await warm_up(target, workload)
            figures = await run(target, "many", workload, 100 + number)
            assert not figures.failed, figures
            if number:  # the first warms up
                found[replicas].append(figures.out_tok_s)
        if number:
            print(
                f"round {number}: " + ", ".join(f"{n}: {all_[-1]:.1f} tok/s" for n, all_ in found.items()), flush=True
            )
    return found


def main(argv: list[str]) -> int:
    """Start both, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for both services")
    arguments = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "one", 1, *arguments.set) as one,
        serving(Path(folder) / "two", 2, *arguments.set) as two,
    ):
        found = asyncio.run(measure({1: one, 2: two}, arguments.rounds))
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    print(json.dumps({"cores": os.cpu_count(), "one": found[1], "two": found[2], "ratio": statistics.median(ratios)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
