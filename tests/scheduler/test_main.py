"""The engine process: how it starts, ends, and says why."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import zmq

from configs.schema import Cache, EngineConfig, Model, Observe, Scheduler
from scheduler.commands import FAILED, Batch, Finished, FinishReason, Generate, Message, Progress, Ready, SamplingParams
from scheduler.start import Endpoints, EngineStart, frontend_id, write_start

TINY = Path(__file__).parents[1] / "golden" / "models" / "llama"
WAIT_S = 120.0


class EngineProcess:
    """An engine process with one frontend and a collector's end."""

    def __init__(self, config: EngineConfig, endpoints: Endpoints, context: "zmq.Context[zmq.SyncSocket]") -> None:
        self._collector = context.socket(zmq.PULL)
        self._collector.bind(endpoints.stats)
        self.frontend = context.socket(zmq.DEALER)
        self.frontend.set(zmq.IDENTITY, frontend_id(0))
        self.frontend.set(zmq.LINGER, 0)
        self.frontend.set(zmq.RCVTIMEO, round(WAIT_S * 1000))
        self.frontend.connect(endpoints.engine(0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scheduler.main"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdin is not None
        write_start(self.process.stdin, EngineStart(config=config, name="tiny", endpoints=endpoints))

    def said(self) -> list[Progress | Ready]:
        """Progress up to Ready, or to the reason for which it leaves."""
        decoder = msgspec.msgpack.Decoder(Progress | Ready)
        found: list[Progress | Ready] = []
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and self._collector.poll(round(WAIT_S * 1000)):
            found.append(decoder.decode(self._collector.recv()))
            if isinstance(found[-1], Ready) or found[-1].stage == FAILED:
                return found
        raise AssertionError("neither ready nor failed")

    def receive(self) -> Message:
        """The next message to the frontend."""
        return msgspec.msgpack.decode(self.frontend.recv(), type=Message)

    def wait(self) -> tuple[int, str]:
        """Exit code and standard error. The lifeline stays open until the process has gone."""
        assert self.process.stderr is not None
        return self.process.wait(WAIT_S), self.process.stderr.read().decode()


@contextmanager
def engine(config: EngineConfig) -> Iterator[EngineProcess]:
    with tempfile.TemporaryDirectory(prefix="radjax-") as directory:
        context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        running = EngineProcess(config, Endpoints(directory), context)
        try:
            yield running
        finally:
            running.process.kill()
            running.process.wait()
            context.destroy(linger=0)


def test_an_engine_that_cannot_start_says_why_in_its_last_progress_and_exits_with_2(tmp_path: Path) -> None:
    missing = tmp_path / "nothing-here"
    with engine(EngineConfig(model=Model(source=str(missing), cache_dir=str(tmp_path)))) as running:
        last = running.said()[-1]
        assert isinstance(last, Progress)
        assert "model.source" in last.detail
        assert str(missing)[-20:] in last.detail
        code, errors = running.wait()
    assert code == 2
    assert "Traceback" not in errors


def test_sigterm_ends_a_serving_engine_cleanly_and_answers_what_it_holds(tmp_path: Path) -> None:
    config = EngineConfig(
        model=Model(source=str(TINY), cache_dir=str(tmp_path)),
        cache=Cache(max_total_tokens=256),
        scheduler=Scheduler(max_running_requests=2, chunk_tokens=64),
        observe=Observe(decode_log_interval=1),
    )
    with engine(config) as running:
        assert isinstance(running.said()[-1], Ready)
        running.frontend.send(b"")
        assert isinstance(running.receive(), Ready)
        params = SamplingParams(max_new_tokens=200, ignore_eos=True)
        running.frontend.send(msgspec.msgpack.encode(Generate(rid="a", prompt=[1, 2, 3], params=params)))
        for _ in ("the prompt's token", "a decode step's"):
            assert isinstance(running.receive(), Batch)
        running.process.send_signal(signal.SIGTERM)
        batch = running.receive()
        while isinstance(batch, Batch) and not isinstance(batch.messages[-1], Finished):
            batch = running.receive()
        assert isinstance(batch, Batch)
        finished = batch.messages[-1]
        assert isinstance(finished, Finished)
        assert finished.reason is FinishReason.ABORT
        code, errors = running.wait()
    assert code == 0, errors
    assert "Traceback" not in errors
    assert " INFO engine-0 scheduler.step_log: prefill: #queue_req: 0" in errors
    assert " INFO engine-0 scheduler.step_log: decode: #running_req: 1" in errors
