"""A stand-in for the engine process: speaks the wire, echoes the prompt, one token every few milliseconds.

Tests talk to it through files in the model's folder: ``pace`` is the time between steps in seconds, ``slots`` how many
requests may run at once, ``load`` the time of a stage of its start, ``fail`` the reason for which it cannot start. It
writes ``engine.pid``, and one of several ``engine-K.pid``; ``heard-K`` gets the name of every operator's command.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import zmq

from scheduler.commands import (
    FAILED,
    LEAK_POOLS,
    Abort,
    AbortAll,
    Batch,
    Command,
    ContinueGeneration,
    Delta,
    DetachStorage,
    DumpState,
    Finished,
    FinishReason,
    FlushCache,
    FreezeGC,
    Generate,
    GetState,
    PauseGeneration,
    Progress,
    Ready,
    Recall,
    Rejected,
    Reply,
    RequestTimes,
    Shutdown,
    StartProfile,
    StateValue,
    StepStats,
    StepTimes,
    Stop,
    StopProfile,
)
from scheduler.start import EngineStart, exit_with_parent, read_start
from scheduler.zmq_channel import ZmqChannel

PAGE = 16
POOL = 4096
CONTEXT = 2**20
NUM_BYTES = 256


@dataclass(slots=True)
class Running:
    """One request."""

    origin: int
    request: Generate
    arrived_ns: int
    sent: int = 0

    def next_token(self) -> int:
        return self.request.prompt[self.sent % len(self.request.prompt)] % NUM_BYTES


@dataclass(slots=True)
class FakeEngine:
    """What runs, the oldest ``slots``, runs at once; a step is one token for each."""

    channel: ZmqChannel
    pace_s: float
    replica: int
    folder: Path
    slots: int
    running: dict[str, Running] = field(default_factory=dict)
    over: bool = False
    paused: bool = False
    steps: int = 0
    finished: int = 0
    aborted: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    def run(self) -> None:
        while not self.over:
            for origin, command in self.channel.receive(self.pace_s if self.running else None):
                self.handle(origin, command)
            self.step()
        self.end(list(self.running.values()), FinishReason.ABORT)

    def handle(self, origin: int, command: object) -> None:
        match command:
            case Generate():
                self.running[command.rid] = Running(origin, command, time.monotonic_ns())
                self.prompt_tokens += len(command.prompt)
            case Abort(rid=rid):
                found = [run for run in self.running.values() if rid in (run.request.rid, run.request.group)]
                self.end(found, FinishReason.ABORT)
            case AbortAll():
                self.end(list(self.running.values()), FinishReason.ABORT)
            case Recall(rid=rid):
                waiting = list(self.running)[self.slots :]
                if rid in waiting:
                    self.note(command)
                    del self.running[rid]
                    back = Rejected(rid=rid, status=503, code="recalled", message="given back")
                    self.channel.send(origin, Batch(messages=[back]))
            case Stop(rid=rid):
                self.end([self.running[rid]] if rid in self.running else [], FinishReason.STOP)
            case FlushCache(call=call) | GetState(call=call):
                self.note(command)
                self.channel.send(origin, Reply(call=call, success=not self.running, message="fake"))
            case PauseGeneration(call=call) | ContinueGeneration(call=call):
                self.note(command)
                self.paused = isinstance(command, PauseGeneration)
                self.report()
                self.channel.send(origin, Reply(call=call, success=True, message="fake"))
            case StartProfile(call=call, output_dir=folder):
                self.note(command)
                state: dict[str, StateValue] = {} if folder is None else {"output_dir": folder}
                self.channel.send(origin, Reply(call=call, success=True, message="fake", state=state))
            case StopProfile(call=call) | FreezeGC(call=call) | DumpState(call=call) | DetachStorage(call=call):
                self.note(command)
                self.channel.send(origin, Reply(call=call, success=True, message="fake"))
            case Shutdown():
                self.over = True
            case _:
                raise AssertionError(f"not a command: {command!r}")

    def note(self, command: Command) -> None:
        with (self.folder / f"heard-{self.replica}").open("a") as file:
            file.write(f"{type(command).__name__}\n")

    def step(self) -> None:
        batches: dict[int, list[Delta | Finished | Rejected]] = {}
        done: list[Running] = []
        for run in islice(self.running.values(), 0 if self.paused else self.slots):
            if run.sent + 1 < run.request.params.max_new_tokens:
                if run.request.stream:
                    batches.setdefault(run.origin, []).append(Delta(rid=run.request.rid, tokens=[run.next_token()]))
                run.sent += 1
                self.output_tokens += 1
            else:
                done.append(run)
        for origin, messages in batches.items():
            self.channel.send(origin, Batch(messages=messages))
        self.end(done, FinishReason.LENGTH)
        self.steps += 1
        self.report()

    def end(self, runs: list[Running], reason: FinishReason) -> None:
        for run in runs:
            del self.running[run.request.rid]
            tokens = [run.next_token()] if reason is FinishReason.LENGTH else []
            if not run.request.stream:
                prompt = run.request.prompt
                tokens = [prompt[i % len(prompt)] % NUM_BYTES for i in range(run.sent)] + tokens
            now = time.monotonic_ns()
            answer = Finished(
                rid=run.request.rid,
                delta=Delta(rid=run.request.rid, tokens=tokens),
                reason=reason,
                prompt_tokens=len(run.request.prompt),
                output_tokens=run.sent + (reason is FinishReason.LENGTH),
                cached_tokens=0,
                times=RequestTimes(
                    arrived_ns=run.arrived_ns,
                    admitted_ns=run.arrived_ns,
                    first_token_ns=now,
                    finished_ns=now,
                    waited_ns={},
                ),
            )
            self.channel.send(run.origin, Batch(messages=[answer]))
            self.finished += reason is not FinishReason.ABORT
            self.aborted += reason is FinishReason.ABORT

    def report(self) -> None:
        self.channel.report(
            StepStats(
                replica=self.replica,
                step=self.steps,
                time_ns=time.monotonic_ns(),
                num_running=min(self.slots, len(self.running)),
                num_queued=max(0, len(self.running) - self.slots),
                tokens_used=PAGE * len(self.running),
                tokens_cached=0,
                tokens_total=POOL,
                waiting_prompt_tokens=0,
                pending_prompt_tokens=0,
                gen_throughput=0.0,
                leaks=dict.fromkeys(LEAK_POOLS, 0),
                prompt_tokens=self.prompt_tokens,
                output_tokens=self.output_tokens,
                cached_tokens=0,
                steps_decode=self.steps,
                steps_mixed=0,
                steps_score=0,
                padded_tokens=0,
                scheduled_tokens=self.output_tokens,
                retractions=0,
                evicted_tokens=0,
                finished=self.finished,
                aborted=self.aborted,
                rejected=0,
                late_compiles=0,
                new_token_ratio=0.7,
                paused=self.paused,
                family="decode",
                size=64,
                step_tokens=min(64, len(self.running)),
            )
        )
        phases = dict.fromkeys(("receive_s", "plan_s", "launch_s", "commit_s", "emit_s"), 1e-4)
        self.channel.report(StepTimes(replica=self.replica, family="decode", size=64, step_s=self.pace_s, **phases))


def main() -> None:
    """Start slowly enough that a test sees the service before it is ready."""
    start = read_start(sys.stdin.buffer, EngineStart)
    exit_with_parent(sys.stdin.buffer)
    folder = Path(start.config.model.source)
    context: zmq.Context[zmq.SyncSocket] = zmq.Context()
    channel = ZmqChannel(context, start.endpoints, start.replica, start.life)
    if (folder / "fail").exists():
        channel.broadcast(Progress(stage=FAILED, done=0, total=0, detail=(folder / "fail").read_text()))
        channel.close()
        context.term()
        sys.exit(3)
    pace_s = float((folder / "pace").read_text()) if (folder / "pace").exists() else 0.005
    slots = int((folder / "slots").read_text()) if (folder / "slots").exists() else 10_000
    load_s = float((folder / "load").read_text()) if (folder / "load").exists() else 0.2
    engine = FakeEngine(channel, pace_s, start.replica, folder, slots)

    def leave(*_: object) -> None:
        engine.over = True
        channel.wake()

    signal.signal(signal.SIGTERM, leave)
    own = f"engine-{start.replica}.pid" if start.config.parallel.replicas > 1 else "engine.pid"
    (folder / own).write_text(str(os.getpid()))
    for done in range(5):
        channel.broadcast(Progress(stage="weights", done=done, total=4))
        channel.receive(load_s)
    channel.broadcast(
        Ready(
            status="ready",
            max_total_num_tokens=POOL,
            max_req_input_len=CONTEXT - 1,
            context_length=CONTEXT,
            vocab_size=2048,
            eos_token_ids=[0],
            folder=str(folder),
            served_name=start.config.model.name or start.name,
            max_running_requests=64,
            architecture="echo",
            banner=["a stand-in that echoes"],
        )
    )
    engine.run()
    channel.close()
    context.term()


main()
