"""The frontend's side of the wire: request id to call, one terminal answer each, nothing lost and nothing unbounded.

Answers are merged per request until somebody takes them, so a slow reader costs at most the tokens that its request may
produce. Requests of a caller that left are aborted, and remembered until the engine's terminal answer came.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from scheduler.commands import (
    Abort,
    AbortAll,
    Batch,
    Command,
    Delta,
    Explain,
    Finished,
    FinishReason,
    FlushCache,
    Frame,
    Generate,
    GetState,
    Look,
    Message,
    Progress,
    Ready,
    Rejected,
    Reply,
    RequestStats,
    Stop,
    Story,
)
from serving.answer import Piece
from serving.chronicle import Chronicle, Marks, StorySink
from serving.protocol.errors import RequestError, unavailable

StatsSink = Callable[[RequestStats], None]
_MAX_GAPS = 4096
_CALL_TIMEOUT_S = 30.0
_log = logging.getLogger("serving.engine_client")


class EngineGone(Exception):
    """The engine at the other end of a link is dead; its words are the reason."""


class Link(Protocol):
    """One engine's wire."""

    async def send(self, command: Command) -> None:
        """Hand over one command, in order."""
        ...

    async def receive(self) -> Message:
        """The next message; raises ``EngineGone`` when none will ever come."""
        ...


class ClientGone(Exception):
    """Nobody reads this call any more."""


class Call:
    """The answers to the requests of one HTTP call, by index."""

    def __init__(self, size: int) -> None:
        self.remaining = size
        self._pieces: dict[int, Piece] = {}
        self._failure: Exception | None = None
        self._news = asyncio.Event()

    async def take(self, timeout_s: float | None) -> dict[int, Piece]:
        """Everything that came since the last time; waits for something. Empty when ``timeout_s`` passed.

        Raises a ``RequestError`` that ends the whole call, or ``ClientGone``.
        """
        if not self._news.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._news.wait()
            except TimeoutError:
                return {}
        self._news.clear()
        if self._failure is not None:
            raise self._failure
        pieces, self._pieces = self._pieces, {}
        return pieces

    def push(self, index: int, delta: Delta, finished: Finished | None) -> None:
        """Merge what came for one request."""
        piece = self._pieces.get(index)
        if piece is None:
            piece = self._pieces[index] = Piece()
        piece.tokens += delta.tokens
        piece.cached_tokens = max(piece.cached_tokens, delta.cached_tokens)
        if delta.logprobs is not None:
            piece.logprobs += delta.logprobs
        if delta.prompt_logprobs is not None:
            piece.prompt_logprobs += delta.prompt_logprobs
        if finished is not None:
            piece.finished = finished
            self.remaining -= 1
        self._news.set()

    def fail(self, failure: Exception) -> None:
        """End the call; the first failure counts."""
        self._failure = self._failure or failure
        self._news.set()


@dataclass(slots=True, frozen=True)
class _Asked:
    """What the figures say of a request as it was asked for."""

    streaming: bool
    max_tokens: int
    choices: int


@dataclass(slots=True)
class _Entry:
    """One request whose terminal answer has not come."""

    call: Call
    index: int
    link: int
    endpoint: str
    num_prompt: int
    begun_s: float
    asked: "_Asked"
    first_s: float | None = None
    last_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list[float])
    abandoned: bool = False

    def note(self, num_tokens: int, now_s: float) -> None:
        """Time the arrival of tokens."""
        if not num_tokens:
            return
        if self.first_s is None:
            self.first_s = now_s
        elif len(self.gaps_s) + num_tokens <= _MAX_GAPS:
            self.gaps_s += [(now_s - self.last_s) / num_tokens] * num_tokens
        self.last_s = now_s


class EngineClient:
    """All engines as one."""

    def __init__(
        self, links: Sequence[Link], *, frontend: int, stats: StatsSink, stories: StorySink = lambda story: None
    ) -> None:
        self.ready: Ready | None = None
        self.progress: Progress | None = None
        self.dead: str | None = None
        """Why no engine answers any more."""
        self.draining = False
        self.chronicle = Chronicle(stories)
        self._links = tuple(links)
        self._frontend = frontend
        self._stats = stats
        self._entries: dict[str, _Entry] = {}
        self._load = [0] * len(self._links)
        self._replies: dict[str, asyncio.Future[Reply]] = {}
        self._waiting_ready = len(self._links)
        self._sends: set[asyncio.Task[None]] = set()
        self._ready_event = asyncio.Event()

    async def run(self) -> None:
        """Read every link until its engine is gone. Cancel it to stop."""
        async with asyncio.TaskGroup() as group:
            for link in self._links:
                group.create_task(self._read(link))

    async def wait_ready(self) -> Ready:
        """Wait until every engine serves; raises ``EngineGone`` when one will not."""
        await self._ready_event.wait()
        if self.ready is None:
            raise EngineGone(self.dead or "the engine did not start")
        return self.ready

    def drain(self) -> None:
        """Take no more requests; those accepted go on."""
        self.draining = True

    @property
    def num_open(self) -> int:
        """Requests without a terminal answer."""
        return len(self._entries)

    async def open(self, requests: Sequence[Generate], endpoint: str, received_ns: int | None = None) -> Call:
        """Send requests whose answers come in one call. Their ids must be new.

        ``received_ns``: when the call came in; without it nothing is told of its requests.
        """
        self.check_open()
        call = Call(len(requests))
        now = time.monotonic()
        for index, request in enumerate(requests):
            assert request.rid not in self._entries, "request ids are unique"
            link = self._load.index(min(self._load))
            self._load[link] += 1
            asked = _Asked(request.stream, request.params.max_new_tokens, len(requests))
            self._entries[request.rid] = _Entry(call, index, link, endpoint, len(request.prompt), now, asked)
            if received_ns is not None:
                marks = Marks(request.group, len(request.prompt), received_ns, time.monotonic_ns())
                self.chronicle.opened(request.rid, marks)
            try:
                await self._links[link].send(request)
            except EngineGone as gone:
                self._die(str(gone))
                break
        return call

    def check_open(self) -> None:
        """Raise when no request can be taken at all."""
        if self.dead is not None:
            raise unavailable("engine_dead", "The engine has stopped; the service restarts or ends.", 5)
        if self.draining:
            raise unavailable("draining", "The service is shutting down.", 5)

    async def stop(self, stop: Stop) -> None:
        """Tell the engine that a stop string was found; what still comes is swallowed."""
        if (entry := self._entries.get(stop.rid)) is not None:
            entry.abandoned = True
            await self._links[entry.link].send(stop)

    def abandon(self, requests: Sequence[Generate]) -> None:
        """Abort those that have not ended, as nobody reads any of them now.

        Never waits, so that a cancelled task can call it.
        """
        now_ns = time.monotonic_ns()
        for request in requests:
            self.chronicle.left(request.rid, now_ns)
            entry = self._entries.get(request.rid)
            if entry is not None and not entry.abandoned:
                entry.abandoned = True
                self._spawn(self._links[entry.link].send(Abort(rid=request.rid)))

    async def abort(self, rid: str) -> None:
        """End every request with this id, whichever frontend took it."""
        await self._send_all(Abort(rid=rid))

    async def abort_all(self) -> None:
        """End every request of the service."""
        await self._send_all(AbortAll())

    async def flush_cache(self) -> list[Reply]:
        """Forget cached prefixes everywhere; one reply an engine."""
        return await self._ask(lambda call: FlushCache(call=call))

    async def state(self) -> list[Reply]:
        """The state of every engine."""
        return await self._ask(lambda call: GetState(call=call))

    async def explain(self, rid: str) -> list[Story]:
        """What happens to the open requests with this id, whichever engine has them."""
        replies = await self._ask(lambda call: Explain(call=call, rid=rid))
        return [self.chronicle.begun(story) for reply in replies for story in reply.stories]

    async def look(self, since_ns: int, *, tree: bool) -> list[Frame]:
        """What every engine has done since ``since_ns``."""
        replies = await self._ask(lambda call: Look(call=call, since_ns=since_ns, tree=tree))
        return [reply.frame for reply in replies if reply.frame is not None]

    async def operate(self, make: Callable[[str], Command]) -> list[Reply]:
        """Pause, profile, attach a storage and the like, everywhere; one reply an engine."""
        return await self._ask(make)

    async def _ask(self, make: Callable[[str], Command]) -> list[Reply]:
        self._check_alive()
        if self.ready is None:
            raise unavailable("loading", "The engine is still starting.", 5)
        loop = asyncio.get_running_loop()
        calls = [secrets.token_hex(8) for _ in self._links]
        futures = [loop.create_future() for _ in self._links]
        self._replies |= dict(zip(calls, futures, strict=True))
        try:
            for link, call in zip(self._links, calls, strict=True):
                await link.send(make(call))
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                return list(await asyncio.gather(*futures))
        except TimeoutError:
            raise unavailable("timeout", "The engine did not answer in time.", 5) from None
        finally:
            for call in calls:
                self._replies.pop(call, None)

    def _check_alive(self) -> None:
        if self.dead is not None:
            raise unavailable("engine_dead", "The engine has stopped; the service restarts or ends.", 5)

    async def _send_all(self, command: Command) -> None:
        self._check_alive()
        for link in self._links:
            await link.send(command)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    async def _read(self, link: Link) -> None:
        try:
            while True:
                self._dispatch(await link.receive())
        except EngineGone as gone:
            self._die(str(gone))

    def _dispatch(self, message: Message) -> None:
        match message:
            case Batch():
                now = time.monotonic()
                for answer in message.messages:
                    self._deliver(answer, now)
            case Reply():
                future = self._replies.get(message.call)
                if future is not None and not future.done():
                    future.set_result(message)
            case Ready():
                self._waiting_ready -= 1
                if self._waiting_ready <= 0:
                    self.ready = message
                    self._ready_event.set()
            case Progress():
                self.progress = message

    def _deliver(self, answer: Delta | Finished | Rejected, now: float) -> None:
        entry = self._entries.get(answer.rid)
        if entry is None:
            return
        if isinstance(answer, Delta):
            entry.note(len(answer.tokens), now)
            if not entry.abandoned:
                entry.call.push(entry.index, answer, None)
            return
        del self._entries[answer.rid]
        self.chronicle.answered(answer, time.monotonic_ns())
        self._load[entry.link] -= 1
        if isinstance(answer, Rejected):
            entry.call.fail(_refusal(answer))
        else:
            if entry.first_s is not None:
                entry.note(len(answer.delta.tokens), now)
            if not entry.abandoned:
                entry.call.push(entry.index, answer.delta, answer)
        self._stats(self._measure(entry, answer, now))

    def _measure(self, entry: _Entry, answer: Finished | Rejected | None, now: float) -> RequestStats:
        done = answer if isinstance(answer, Finished) else None
        times = done.times if done else None
        ttft = entry.first_s - entry.begun_s if entry.first_s is not None else None
        if ttft is None and times is not None and done is not None and done.output_tokens:
            ttft = max(0, times.first_token_ns - times.arrived_ns) / 1e9
        refused: Literal["rejected", "error"] = "rejected" if answer else "error"
        return RequestStats(
            frontend=self._frontend,
            endpoint=entry.endpoint,
            outcome=_OUTCOMES[done.reason] if done else refused,
            prompt_tokens=done.prompt_tokens if done else entry.num_prompt,
            output_tokens=done.output_tokens if done else 0,
            cached_tokens=done.cached_tokens if done else 0,
            queue_s=_between_s(times.arrived_ns, times.admitted_ns) if times else 0.0,
            ttft_s=ttft,
            e2e_s=now - entry.begun_s,
            inter_token_s=entry.gaps_s,
            streaming=entry.asked.streaming,
            max_tokens=entry.asked.max_tokens,
            choices=entry.asked.choices,
            prefill_s=_between_s(times.admitted_ns, times.first_token_ns) if times else 0.0,
            decode_s=_between_s(times.first_token_ns, times.finished_ns) if times else 0.0,
            retractions=done.retractions if done else 0,
            refusal=answer.code if isinstance(answer, Rejected) else "",
        )

    def _die(self, reason: str) -> None:
        """Every call ends with an error, every question with none; nothing is accepted any more."""
        _log.error("engine gone: %s", reason)
        self.dead = reason or "the engine has stopped"
        self._ready_event.set()
        entries, self._entries = self._entries, {}
        now = time.monotonic()
        for rid, entry in entries.items():
            self.chronicle.forget(rid)
            entry.call.fail(RequestError(500, "engine_dead", "The engine stopped before the request was done."))
            self._stats(self._measure(entry, None, now))
        for future in self._replies.values():
            if not future.done():
                future.set_exception(unavailable("engine_dead", "The engine has stopped.", 5))


_OUTCOMES: dict[FinishReason, Literal["stop", "length", "abort"]] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORT: "abort",
}


def _between_s(start_ns: int, end_ns: int) -> float:
    """Seconds between two moments; 0 where one of them never came."""
    return max(0, end_ns - start_ns) / 1e9 if start_ns and end_ns else 0.0


def _refusal(answer: Rejected) -> RequestError:
    retry = answer.retry_after_s
    if retry is None and answer.status == 503:
        retry = 1.0
    return RequestError(answer.status, answer.code, answer.message, param=answer.param, retry_after_s=retry)
