"""A stand-in for the engine process: speaks the wire, echoes the prompt, one token every few milliseconds.

Tests talk to it through files in the model's folder: ``pace`` is the time between steps in seconds, ``fail`` the
reason for which it cannot start.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from scheduler.commands import (
    FAILED,
    Abort,
    AbortAll,
    Batch,
    Delta,
    Finished,
    FinishReason,
    FlushCache,
    Generate,
    GetState,
    Progress,
    Ready,
    Rejected,
    Reply,
    RequestTimes,
    Shutdown,
    StepStats,
    StepTimes,
    Stop,
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
    """Everything runs at once; a step is one token for each."""

    channel: ZmqChannel
    pace_s: float
    running: dict[str, Running] = field(default_factory=dict)
    over: bool = False
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
            case Stop(rid=rid):
                self.end([self.running[rid]] if rid in self.running else [], FinishReason.STOP)
            case FlushCache(call=call) | GetState(call=call):
                self.channel.send(origin, Reply(call=call, success=not self.running, message="fake"))
            case Shutdown():
                self.over = True
            case _:
                raise AssertionError(f"not a command: {command!r}")

    def step(self) -> None:
        batches: dict[int, list[Delta | Finished | Rejected]] = {}
        done: list[Running] = []
        for run in self.running.values():
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
                replica=0,
                step=self.steps,
                time_ns=time.monotonic_ns(),
                num_running=len(self.running),
                num_queued=0,
                tokens_used=PAGE * len(self.running),
                tokens_cached=0,
                tokens_total=POOL,
                waiting_prompt_tokens=0,
                pending_prompt_tokens=0,
                gen_throughput=0.0,
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
                family="decode",
                size=64,
                step_tokens=min(64, len(self.running)),
            )
        )
        phases = dict.fromkeys(("receive_s", "plan_s", "launch_s", "commit_s", "emit_s"), 1e-4)
        self.channel.report(StepTimes(replica=0, family="decode", size=64, step_s=self.pace_s, **phases))


def main() -> None:
    """Start slowly enough that a test sees the service before it is ready."""
    start = read_start(sys.stdin.buffer, EngineStart)
    exit_with_parent(sys.stdin.buffer)
    folder = Path(start.config.model.source)
    context: zmq.Context[zmq.SyncSocket] = zmq.Context()
    channel = ZmqChannel(context, start.endpoints, start.replica)
    if (folder / "fail").exists():
        channel.broadcast(Progress(stage=FAILED, done=0, total=0, detail=(folder / "fail").read_text()))
        channel.close()
        context.term()
        sys.exit(3)
    pace_s = float((folder / "pace").read_text()) if (folder / "pace").exists() else 0.005
    engine = FakeEngine(channel, pace_s)

    def leave(*_: object) -> None:
        engine.over = True
        channel.wake()

    signal.signal(signal.SIGTERM, leave)
    (folder / "engine.pid").write_text(str(os.getpid()))
    for done in range(5):
        channel.broadcast(Progress(stage="weights", done=done, total=4))
        channel.receive(0.2)
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
