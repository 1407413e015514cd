"""Two services of the real model side by side on the same cores, asked in turns; the other one does nothing meanwhile.

``python -m tests.benchmarks.paired PAIR``, where PAIR is

- ``replicas``: one engine of 16 rows, and two of 16 rows each, on ``many``. No gain is to be expected of two engines
  that share the cores of one: what the ratio lacks to 1 is what a second one costs.
- ``watching``: nothing watched, not even for ``/metrics``, and everything but device profiles and OpenTelemetry, on
  ``single`` and ``many``.

Prints one line a round and then JSON, with the second service's output tokens a second as a share of the first's.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serving.bench.client import Server, model_name
from serving.bench.load import Target, run, warm_up
from serving.bench.workloads import WORKLOADS
from tests.serving.process.real_service import launched
from tests.serving.process.service import ROOT, Service
from tests.serving.process.test_service import metric

VOCAB_SIZE: Final = 30_000
QUIET_S: Final = 10.0
"""Without a new program all are taken for compiled."""
START_S: Final = 45.0
"""After which they are, where ``/metrics`` is off."""


@dataclass(slots=True, frozen=True)
class Pair:
    """What is compared; ``{}`` in a setting stands for a folder of the service's own."""

    workloads: tuple[str, ...]
    both: tuple[str, ...]
    first: tuple[str, ...]
    second: tuple[str, ...]


PAIRS: Final = {
    "replicas": Pair(
        workloads=("many",),
        both=("scheduler.max_running_requests=16", "model.context_length=1024"),
        first=(),
        second=("parallel.replicas=2",),
    ),
    "watching": Pair(
        workloads=("single", "many"),
        both=(),
        first=("observe.metrics=false",),
        second=(
            "observe.metrics_alias=sglang",
            "observe.log_requests=3",
            "observe.log_format=json",
            "observe.request_lifecycle=true",
            "observe.record={}/run",
            "observe.crash_dump_dir={}/dumps",
            "observe.step_records=true",
            "observe.step_records_file={}/steps.jsonl",
            "observe.step_records_console=true",
            "observe.record_step_time=true",
            "observe.kv_events_endpoint=ipc://{}/events",
            "observe.kv_events_replay_endpoint=ipc://{}/replay",
            "observe.kv_metrics_endpoint=ipc://{}/metrics",
        ),
    ),
}


@contextlib.contextmanager
def serving(folder: Path, settings: tuple[str, ...]) -> Iterator[Service]:
    """A service whose programs are all there."""
    folder.mkdir()
    own = [setting.replace("{}", str(folder)) for setting in settings]
    with launched(ROOT / "configs/smollm2-135m.yaml", folder, *own) as service:
        if "observe.metrics=false" in settings:
            time.sleep(START_S)
            yield service
            return
        compiled, since_s = -1.0, time.monotonic()
        while time.monotonic() - since_s < QUIET_S:
            now = metric(service.client.get("/metrics").text, "radjax_compiled_programs_total")
            if now != compiled:
                compiled, since_s = now, time.monotonic()
            time.sleep(0.5)
        yield service


async def measure(name: str, services: tuple[Service, Service], rounds: int) -> tuple[list[float], list[float]]:
    """Output tokens a second of each service, round by round in turns; a round before these warms up."""
    workload, found = WORKLOADS[name], (list[float](), list[float]())
    servers = [Server(service.url, None) for service in services]
    targets = [Target(server, await model_name(server), VOCAB_SIZE) for server in servers]
    for target in targets:
        await warm_up(target, workload)
    for number in range(rounds + 1):
        for target, figures in zip(targets, found, strict=True):
            now = await run(target, name, workload, 100 + number)
            assert not now.failed, now
            figures.append(now.out_tok_s)
        print(f"{name} {number}: {found[0][-1]:.1f} and {found[1][-1]:.1f} tok/s", flush=True)
    return found[0][1:], found[1][1:]


def main(argv: list[str]) -> int:
    """Start both, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", choices=PAIRS)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    pair = PAIRS[arguments.pair]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "1", pair.both + pair.first) as first,
        serving(Path(folder) / "2", pair.both + pair.second) as second,
    ):
        for name in pair.workloads:
            one, other = asyncio.run(measure(name, (first, second), arguments.rounds))
            shares = sorted(b / a for a, b in zip(one, other, strict=True))
            spread = {"least": shares[0], "median": statistics.median(shares), "most": shares[-1]}
            print(
                json.dumps({"workload": name, "cores": os.cpu_count(), "first": one, "second": other, "share": spread})
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
