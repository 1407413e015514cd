"""Feeds a recording back and sees to it that every plan comes out the same, byte for byte."""

from collections import deque
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from model.interface import MAX_TOP_LOGPROBS, Int32, Shapes, StepInput, StepOutput
from scheduler.assembly import assemble
from scheduler.loop import run
from scheduler.observe import Event
from scheduler.planner import Plan
from scheduler.port import Answer
from scheduler.recording import Frame, Header, Planned, Tokens, Turn, read_frames
from scheduler.tick import Tick


class ReplayError(Exception):
    """The recording cannot be replayed, or a plan differs from it."""


class _RecordingEnded(Exception):
    """There is no further turn."""


class _Frames:
    """The frames of one kind after another, each kind read on its own."""

    def __init__(self, frames: list[Frame]) -> None:
        self.ticks = deque(frame.tick for frame in frames if isinstance(frame, Turn))
        self.plans = deque(frame.plan for frame in frames if isinstance(frame, Planned))
        self.tokens = deque(frame.tokens for frame in frames if isinstance(frame, Tokens))


class _ReplayPort:
    """A port whose turns come from the recording and whose answers go nowhere."""

    def __init__(self, ticks: deque[Tick]) -> None:
        self._ticks = ticks

    def poll(self) -> Tick:
        if not self._ticks:
            raise _RecordingEnded
        return self._ticks.popleft()

    def wait(self) -> Tick:
        return self.poll()

    def send(self, answers: list[Answer]) -> None:
        del answers


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

    def __init__(self, shapes: Shapes, tokens: deque[list[int]]) -> None:
        self._shapes = shapes
        self._tokens = tokens

    @property
    def shapes(self) -> Shapes:
        return self._shapes

    def launch(self, step: StepInput) -> _ReplayHandle:
        return _ReplayHandle(step, self._tokens)

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


def replay(path: Path) -> int:
    """Replay a recording; returns how many plans were the same.

    Raises:
        ReplayError: a plan differs, or the file holds no recording.
    """
    try:
        frames = list(read_frames(path))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReplayError(f"{path} is no recording: {error}") from error
    header = frames[0] if frames else None
    if not isinstance(header, Header):
        raise ReplayError(f"{path} does not begin like a recording")
    left = _Frames(frames)
    comparer = _Comparer(left.plans)
    runner = _ReplayRunner(header.shapes, left.tokens)
    engine = assemble(_ReplayPort(left.ticks), runner, header.settings, (comparer,))
    with suppress(_RecordingEnded):
        run(engine, header.settings.depth)
    return comparer.compared
