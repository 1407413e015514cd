"""``radjax plan`` against the server that it stands for: throughput, median time to first token and number of steps.

``python -m tests.benchmarks.plan_against_server FOLDER [WORKLOAD …]`` measures the step times of the launch file, then
serves it with a recording, drives each workload with the project's own load generator, and plans the same requests:

- ``timeline``: they come when they came, as ``radjax plan RECORDING --steps FILE`` has it;
- ``closed``: as many clients ask one after the other, as ``radjax plan --concurrency N`` has it.

It prints one JSON object a workload: the server's figures, and the ratios of planned to served. ``--again`` plans with
what FOLDER holds. A machine that is busy with other work while one of the two runs shows in the ratios; those with
``_own_times`` have the times that the steps took in the server itself, and show what else the model lacks.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from model.interface import StepInput
from scheduler.commands import Generate
from scheduler.figures import Figures as Planned
from scheduler.recording import Planned as PlannedFrame
from scheduler.recording import Turn, read_frames
from scheduler.replay import Recording, arrivals, open_recording, play
from scheduler.simulate import ClosedLoop, Source, Timeline, simulate
from scheduler.step_times import Repeated, StepClock, StepTime, context_tokens, piece_pairs, read_table
from scheduler.trace import Arrival
from serving.bench.client import Server, complete, model_name
from serving.bench.load import Figures as Served
from serving.bench.load import Target, run
from serving.bench.workloads import WORKLOADS, Workload

LAUNCH_FILE: Final = Path(__file__).parents[2] / "configs" / "smollm2-135m.yaml"
VOCAB_SIZE: Final = 30_000
START_S: Final = 600.0
QUIET_S: Final = 20.0
"""After so long without a new program all are there."""
RADJAX: Final = Path(sys.executable).parent / "radjax"


class Run(Struct, frozen=True):
    """A workload that was served."""

    first: int
    """Requests that the recording has before its own."""
    served: Served


@contextlib.contextmanager
def server(port: int, recording: Path, overrides: Sequence[str] = ()) -> Iterator[str]:
    """A server that records; its address."""
    url = f"http://127.0.0.1:{port}"
    command = [RADJAX, "serve", LAUNCH_FILE, "--port", str(port), "--record", recording]
    command += [part for override in overrides for part in ("--set", override)]
    with recording.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            until = time.monotonic() + START_S
            while fetched(f"{url}/readyz") is None:
                assert process.poll() is None, f"the server did not start: see {log.name}"
                assert time.monotonic() < until, "the server does not become ready"
                time.sleep(1)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def fetched(url: str) -> str | None:
    """What is there; None: an error, or nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return reply.read().decode()
    except OSError:
        return None


def compiled(url: str) -> float:
    """Programs that a server has ready, as of its last step."""
    lines = (fetched(f"{url}/metrics") or "").splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("radjax_compiled_programs_total{"))


async def drive(url: str, names: Sequence[str], requests: int | None, seed: int, programs: int) -> list[Run]:
    """Run one workload after the other once all programs are ready."""
    target, sent = Target(Server(url), await model_name(Server(url)), VOCAB_SIZE), 0
    until, runs = time.monotonic() + START_S, list[Run]()
    seen, since = 0.0, time.monotonic()
    # those that the table does not have are compiled too, and take the cores meanwhile
    while seen < programs or time.monotonic() - since < QUIET_S:
        assert time.monotonic() < until, "the programs do not become ready"
        await complete(target.server, target.model, [1000], 2)
        sent += 1
        await asyncio.sleep(1)
        if (ready := compiled(url)) != seen:
            seen, since = ready, time.monotonic()
    for name in names:
        runs.append(Run(sent, await run(target, name, workload(name, requests), seed)))
        sent += runs[-1].served.completed
    return runs


def workload(name: str, requests: int | None) -> Workload:
    """The workload, or its first requests."""
    whole = WORKLOADS[name]
    return whole if requests is None else replace(whole, num_prompts=requests)


def measure_steps(path: Path, contexts: Sequence[str], repeat: int) -> None:
    """Write the table of step times."""
    command = [RADJAX, "bench", "steps", LAUNCH_FILE, "--lean", "--repeat", str(repeat), "--out", path]
    subprocess.run([*command, "--context", *contexts], check=True)


def asked(recording: Recording, done: Run) -> list[Arrival]:
    """The workload's own requests; time begins with the first of them."""
    requests = list(itertools.islice(arrivals(recording), done.first, done.first + done.served.completed))
    return [one._replace(at_ns=one.at_ns - requests[0].at_ns) for one in requests]


def steps_served(path: Path, done: Run) -> int:
    """Steps from its first request to the first of the next workload."""
    requests = steps = 0
    for frame in read_frames(path):
        if isinstance(frame, Turn):
            requests += sum(isinstance(command, Generate) for _, command in frame.tick.commands)
        elif isinstance(frame, PlannedFrame) and done.first < requests <= done.first + done.served.completed:
            _, size, *_ = msgspec.msgpack.decode(frame.plan)
            steps += size > 0
    return steps


def served_times(recording: Recording) -> list[StepTime]:
    """What each step took in the server itself, its host time too: the turn that waited for it."""
    launched: dict[int, StepInput] = {}
    size, turns = recording.header.shapes.page_size, recording.ticks
    # every turn makes one plan, and those that have work launch one step
    working = [number for number, plan in enumerate(recording.plans) if msgspec.msgpack.decode(plan)[1]]
    play(recording, lambda step: launched.update({working[len(launched)]: step}))
    depth, repeated = recording.header.settings.depth, Repeated()
    return [
        StepTime(
            family=step.family,
            variant=step.variant,
            size=step.size,
            context_tokens=context_tokens(step),
            pairs=piece_pairs(step),
            repeated_tokens=repeated.tokens(step, size),
            seconds=(turns[number + depth + 1].now_ns - turns[number + depth].now_ns) / 1e9,
        )
        for number, step in launched.items()
        if number - 1 in launched and number + depth in launched and number + depth + 1 < len(turns)
    ]


def program(time: StepTime) -> tuple[str, str, int]:
    """The program that took the time."""
    return time.family, time.variant, time.size


def compare(folder: Path, done: Run) -> dict[str, object]:
    """Plan what was served."""
    recording, served = open_recording(folder / "recording"), done.served
    requests, steps = asked(recording, done), steps_served(folder / "recording", done)

    def planned(source: Source, times: Sequence[StepTime]) -> Planned:
        shapes, settings = recording.header.shapes, recording.header.settings
        return simulate(source, shapes, settings, StepClock(times, shapes.page_size)).figures("model", 1.0)

    def ratios(figures: Planned) -> dict[str, float]:
        return {
            "out_tok_s": round(figures.out_tok_s / served.out_tok_s, 3),
            "ttft_p50": round(figures.ttft_ms.p50 / served.ttft_p50_ms, 3),
            "steps": round(figures.steps / steps, 3),
        }

    concurrency = WORKLOADS[served.workload].concurrency
    measured, own = read_table(folder / "steps.json").times, served_times(recording)
    ran = {program(time) for time in own}
    # what the server did not run, the plan may
    tables = {"": measured, "_own_times": [*own, *(time for time in measured if program(time) not in ran)]}
    return {
        "workload": served.workload,
        "served": {"out_tok_s": served.out_tok_s, "ttft_p50_ms": served.ttft_p50_ms, "steps": steps},
        **{f"timeline{name}": ratios(planned(Timeline(requests), times)) for name, times in tables.items()},
        **{
            f"closed{name}": ratios(planned(ClosedLoop(requests, concurrency), times)) for name, times in tables.items()
        },
    }


def main(argv: list[str]) -> int:
    """Measure, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("workloads", nargs="*", default=["many", "prefix"], metavar="WORKLOAD")
    parser.add_argument("--again", action="store_true", help="only plan, with what the folder holds")
    parser.add_argument("--context", nargs="+", default=["0", "640"], metavar="N")
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each program")
    parser.add_argument("--requests", type=int, help="of each workload (by default as many as it has)")
    parser.add_argument("--port", type=int, default=31300)
    parser.add_argument("--seed", type=int, default=100)
    arguments = parser.parse_args(argv)
    folder: Path = arguments.folder
    if not arguments.again:
        folder.mkdir(exist_ok=True)
        measure_steps(folder / "steps.json", arguments.context, arguments.repeat)
        programs = len({program(time) for time in read_table(folder / "steps.json").times})
        with server(arguments.port, folder / "recording") as url:
            runs = asyncio.run(drive(url, arguments.workloads, arguments.requests, arguments.seed, programs))
        (folder / "runs.json").write_bytes(msgspec.json.encode(runs))
    for done in msgspec.json.decode((folder / "runs.json").read_bytes(), type=list[Run]):
        print(json.dumps(compare(folder, done)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
