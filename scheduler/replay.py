"""Feeds a recording back, sees to it that every plan comes out the same, byte for byte, and measures the run.

``arrivals`` takes the requests out of it, for a run on another clock.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from model.interface import MAX_TOP_LOGPROBS, Int32, Shapes, StepInput, StepOutput
from scheduler.assembly import assemble
from scheduler.commands import (
    Abort,
    AbortAll,
    ContinueGeneration,
    Finished,
    FinishReason,
    FlushCache,
    Generate,
    PauseGeneration,
)
from scheduler.figures import Meter
from scheduler.loop import run
from scheduler.observe import Event
from scheduler.planner import Plan
from scheduler.port import Answer
from scheduler.recording import Header, Planned, Tokens, Turn, read_frames
from scheduler.tick import Tick
from scheduler.timeline import Timeline
from scheduler.trace import Arrival

OnStep = Callable[[StepInput], None]


class ReplayError(Exception):
    """The recording cannot be replayed, or a plan differs from it."""


class _RecordingEnded(Exception):
    """There is no further turn."""


@dataclass(slots=True, frozen=True)
class Recording:
    """The frames of a recording, each kind in its order."""

    header: Header
    ticks: tuple[Tick, ...]
    plans: tuple[bytes, ...]
    tokens: tuple[list[int], ...]


@dataclass(slots=True, frozen=True)
class Replayed:
    """What a replay came to."""

    compared: int
    """Plans that were the same."""
    meter: Meter
    timeline: Timeline
    stopped: dict[str, int]
    """Output tokens of the requests that ended by themselves before their limit."""


class _ReplayPort:
    """A port whose turns come from the recording and whose answers are only counted.

    A turn ended where the next began; of the last turn before the engine rested only its beginning is known, and it is
    taken to have been as long as the one before.
    """

    def __init__(self, ticks: deque[Tick], meter: Meter) -> None:
        self.stopped: dict[str, int] = {}
        self.timeline = Timeline(self.turn_ends_ns)
        self._ticks = ticks
        self._meter = meter
        self._last_ns = 0
        self._length_ns = 0

    def poll(self) -> Tick:
        tick = self._take()
        if self._last_ns:
            self._length_ns = tick.now_ns - self._last_ns
        return self._begin(tick, tick.now_ns)

    def wait(self, limit_s: float | None = None) -> Tick:
        del limit_s
        tick = self._take()
        return self._begin(tick, min(tick.now_ns, self._last_ns + self._length_ns))

    def turn_ends_ns(self) -> int:
        """When the next turn began, or this one would have if it was as long as the one before."""
        return self._ticks[0].now_ns if self._ticks else self._last_ns + self._length_ns

    def send(self, answers: list[Answer]) -> None:
        self._meter.sent(answers)
        self.timeline.answered(answers)
        for _, answer in answers:
            if isinstance(answer, Finished) and answer.reason is FinishReason.STOP:
                self.stopped[answer.rid] = max(answer.output_tokens, 1)

    def end(self) -> None:
        """There is no further turn."""
        self._meter.end(self._last_ns + self._length_ns)

    def _take(self) -> Tick:
        if not self._ticks:
            raise _RecordingEnded
        return self._ticks.popleft()

    def _begin(self, tick: Tick, ended_ns: int) -> Tick:
        self._meter.turn(ended_ns, tick.now_ns)
        self._last_ns = tick.now_ns
        for _, command in tick.commands:
            if isinstance(command, Generate):
                self._meter.arrived(command.rid, tick.now_ns)
        return tick


class _ReplayHandle:
    """A step whose tokens are recorded."""

    def __init__(self, step: StepInput, tokens: deque[list[int]]) -> None:
        self._sample = np.flatnonzero(step.sample)
        self._num_rows = max(len(step.sample), step.size)
        self._tokens = tokens

    def ready(self) -> bool:
        return True

    def result(self) -> StepOutput:
        if not self._tokens:
            raise _RecordingEnded
        row_tokens: Int32 = np.zeros(self._num_rows, np.int32)
        row_tokens[self._sample] = self._tokens.popleft()
        top = (self._num_rows, MAX_TOP_LOGPROBS)
        zeros = np.zeros(self._num_rows, np.float32)
        return StepOutput(row_tokens, zeros, np.zeros(top, np.int32), np.zeros(top, np.float32))


class _ReplayRunner:
    """A runner without a model."""

    def __init__(self, shapes: Shapes, tokens: deque[list[int]], meter: Meter, on_step: OnStep) -> None:
        self._shapes = shapes
        self._tokens = tokens
        self._meter = meter
        self._on_step = on_step

    @property
    def shapes(self) -> Shapes:
        return self._shapes

    def launch(self, step: StepInput) -> _ReplayHandle:
        self._meter.launched(step)
        self._on_step(step)
        return _ReplayHandle(step, self._tokens)

    @property
    def host(self) -> None:
        return None

    def compiled_late(self) -> int:
        return 0


class _Comparer:
    """An observer that holds every plan against the recorded one."""

    def __init__(self, plans: deque[bytes]) -> None:
        self.compared = 0
        self._plans = plans

    def observe(self, event: Event) -> None:
        if not isinstance(event, Plan):
            return
        if not self._plans:
            raise _RecordingEnded
        if event.canonical() != self._plans.popleft():
            raise ReplayError(f"plan {self.compared} differs from the recorded one: {event}")
        self.compared += 1


def open_recording(path: Path) -> Recording:
    """Read a recording.

    Raises:
        ReplayError: the file holds none.
    """
    try:
        frames = list(read_frames(path))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReplayError(f"{path} is no recording: {error}") from error
    header = frames[0] if frames else None
    if not isinstance(header, Header):
        raise ReplayError(f"{path} does not begin like a recording")
    return Recording(
        header,
        tuple(frame.tick for frame in frames if isinstance(frame, Turn)),
        tuple(frame.plan for frame in frames if isinstance(frame, Planned)),
        tuple(frame.tokens for frame in frames if isinstance(frame, Tokens)),
    )


def play(recording: Recording, on_step: OnStep = lambda step: None) -> Replayed:
    """Run a recording again, its commands in their recorded turns; ``on_step`` is told of every step.

    Raises:
        ReplayError: a plan differs.
    """
    meter, settings = Meter(), recording.header.settings
    comparer = _Comparer(deque(recording.plans))
    port = _ReplayPort(deque(recording.ticks), meter)
    runner = _ReplayRunner(recording.header.shapes, deque(recording.tokens), meter, on_step)
    with suppress(_RecordingEnded):
        run(assemble(port, runner, settings, (comparer, meter, port.timeline)), settings.depth)
    port.end()
    return Replayed(comparer.compared, meter, port.timeline, port.stopped)


def replay(path: Path) -> int:
    """Replay a recording; returns how many plans were the same.

    Raises:
        ReplayError: a plan differs, or the file holds no recording.
    """
    return play(open_recording(path)).compared


def arrivals(recording: Recording) -> Iterator[Arrival]:
    """What the clients did, by the time of the turn that read it; requests end with as many tokens as they did.

    Raises:
        ReplayError: see ``play``.
    """
    stopped = play(recording).stopped
    first_ns = next((tick.now_ns for tick in recording.ticks if tick.commands), 0)
    for tick in recording.ticks:
        for _, command in tick.commands:
            # what was stopped by its text ends by length of its own; what asks for the state and the like is no load
            if not isinstance(command, Generate | Abort | AbortAll | FlushCache | PauseGeneration | ContinueGeneration):
                continue
            length = stopped.get(command.rid) if isinstance(command, Generate) else None
            yield Arrival(tick.now_ns - first_ns, command, length)
