"""The real scheduler behind a real frontend: steps that end when the test says, and a clock that the test sets."""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from model.interface import Shapes, StepInput, StepOutput
from scheduler.assembly import Settings, assemble
from scheduler.commands import Batch, Command, Finished, Generate, Message, Rejected, Shutdown, StepStats
from scheduler.local_channel import LocalChannel
from scheduler.loop import run
from scheduler.observe import Event
from scheduler.planner import Plan
from scheduler.port import ChannelPort
from scheduler.tick import Tick
from tests.fakes import EchoHandle, KVEchoRunner
from tests.serving.fakes import CONTEXT, make_ready
from tests.serving.service import serve

PATIENCE_S = 20.0


class Gate:
    """Lets one step end for each permit, or all of them once it is open."""

    def __init__(self) -> None:
        self._permit = threading.Event()
        self._open = False

    def permit(self) -> None:
        """Let the next step end; permits do not add up."""
        self._permit.set()

    def open(self) -> None:
        self._open = True

    def wait(self) -> None:
        while not self._open and not self._permit.wait(0.05):
            pass
        self._permit.clear()


@dataclass
class GatedHandle:
    handle: EchoHandle
    gate: Gate

    def ready(self) -> bool:
        return True

    def result(self) -> StepOutput:
        self.gate.wait()
        return self.handle.result()


@dataclass
class GatedRunner:
    """An echo runner behind a gate."""

    echo: KVEchoRunner
    gate: Gate

    @property
    def shapes(self) -> Shapes:
        return self.echo.shapes

    def launch(self, step: StepInput) -> GatedHandle:
        return GatedHandle(self.echo.launch(step), self.gate)

    def compiled_late(self) -> int:
        return 0


@dataclass
class Watch:
    """What the engine has read, and its newest figures."""

    rids: list[str] = field(default_factory=list)
    """The clients' ids of the requests read, in order."""
    admitted: list[str] = field(default_factory=list)
    """The clients' ids of the requests that began to run or began again, in order."""
    stats: StepStats | None = None

    def observe(self, event: Event) -> None:
        if isinstance(event, Tick):
            self.rids += [c.group or c.rid for _, c in event.commands if isinstance(c, Generate)]
        elif isinstance(event, Plan):
            self.admitted += [request.group or request.rid for request in event.admit]
        elif isinstance(event, StepStats):
            self.stats = event


class EngineLink:
    """A frontend's wire to an engine in this process."""

    def __init__(self, channel: LocalChannel, first: Message) -> None:
        self._client = channel.client(0)
        self._messages: deque[Message] = deque([first])
        self.sent: set[str] = set()
        """The clients' ids of the requests handed over."""
        self.ended: Counter[str] = Counter()
        """Terminal answers by the engine's id of the request."""

    async def send(self, command: Command) -> None:
        self._client.send(command)
        if isinstance(command, Generate):
            self.sent.add(command.group or command.rid)

    async def receive(self) -> Message:
        while not self._messages:
            self._messages.extend(await asyncio.to_thread(self._client.receive, 0.02))
            batches = [message.messages for message in self._messages if isinstance(message, Batch)]
            self.ended.update(one.rid for batch in batches for one in batch if isinstance(one, Finished | Rejected))
        return self._messages.popleft()


def until(condition: Callable[[], bool], nudge: Callable[[], None] = lambda: None) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to hold"
        nudge()
        time.sleep(0.002)


@dataclass
class RealEngine:
    """A served engine under the test's hands."""

    url: str
    gate: Gate
    watch: Watch
    link: EngineLink
    now_ns: list[int]
    pool: ThreadPoolExecutor

    def post(self, path: str, **body: object) -> "Future[httpx2.Response]":
        """Send in the background."""
        url = f"{self.url}{path}"
        # without TLS, whose certificates take 40 ms to read
        return self.pool.submit(lambda: httpx2.post(url, json=body, timeout=PATIENCE_S, verify=False))

    def send(self, path: str, rid: str, **body: object) -> "Future[httpx2.Response]":
        """Send in the background, and let steps end until the engine has read it."""
        reply = self.post(path, rid=rid, **body)
        until(lambda: rid in self.link.sent or reply.done())
        self.step_until(lambda: rid in self.watch.rids or reply.done())
        return reply

    def step_until(self, condition: Callable[[], bool]) -> None:
        """Let one step after another end until it holds."""
        until(condition, self.gate.permit)

    def pass_time(self, seconds: float) -> None:
        """Put the engine's clock forward."""
        self.now_ns[0] += round(seconds * 1e9)


@contextmanager
def real_engine(folder: Path, num_rows: int = 1, num_pages: int = 256, **given: object) -> Iterator[RealEngine]:
    """An engine for ``num_rows`` requests at a time, checked after every step, until the block ends."""
    ready = make_ready(folder)
    shapes = Shapes(
        decode_rows=(num_rows,),
        mixed_tokens=(64,),
        score_tokens=8,
        max_rows=num_rows,
        max_pieces=2,
        tile=4,
        page_size=4,
        pages_per_row=CONTEXT // 4,
        vocab_size=ready.vocab_size,
    )
    setting = Settings(
        context_length=CONTEXT,
        num_pages=num_pages,
        max_rows=num_rows,
        depth=1,
        max_inflight=1,
        eos_ids=(2,),
        check="every_step",
        **given,  # pyright: ignore[reportArgumentType]
    )
    channel, gate, watch, now_ns = LocalChannel(), Gate(), Watch(), [10**9]
    link = EngineLink(channel, ready)
    port = ChannelPort(channel, lambda: now_ns[0], lambda: 5)
    engine = assemble(port, GatedRunner(KVEchoRunner(shapes), gate), setting, (watch,))
    thread = threading.Thread(target=run, args=(engine, setting.depth))
    thread.start()
    try:
        with serve(folder, lambda request: [], link=link) as service, ThreadPoolExecutor(16) as pool:
            try:
                yield RealEngine(service.url, gate, watch, link, now_ns, pool)
            finally:
                gate.open()
    finally:
        gate.open()
        channel.submit(1, Shutdown())
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the engine did not stop"
