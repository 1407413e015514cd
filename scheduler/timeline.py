"""A replayed run as one frame of the live page, without prompts: what to open there, or to attach to a report."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct, structs

from scheduler.commands import Finished, Frame, Generate, Rejected, StepMark, Story
from scheduler.observe import Event
from scheduler.port import Answer
from scheduler.step_ring import StepRing
from scheduler.tick import Tick

MAX_STEPS: Final = 20_000
MAX_STORIES: Final = 5_000


class TimelineFile(Struct, frozen=True, kw_only=True):
    """What the page reads."""

    format: str = "radjax-timeline"
    version: int = 1
    frames: list[Frame]


class Timeline:
    """Collects a run; an ``Observer`` that is also told of every answer. Keeps the newest ones of a long run.

    Args:
        clock: nanoseconds, at the end of the turn that is replayed.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._ring = StepRing(clock, MAX_STEPS)
        self._stories: deque[Story] = deque(maxlen=MAX_STORIES)
        self._open: dict[str, Generate] = {}
        self._now_ns = 0

    def observe(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Tick):
            self._now_ns = event.now_ns
            for _, command in event.commands:
                if isinstance(command, Generate):
                    self._open.setdefault(command.rid, command)
        self._ring.observe(event)

    def answered(self, answers: Sequence[Answer]) -> None:
        """Take what was sent in a turn."""
        for _, answer in answers:
            if isinstance(answer, Finished | Rejected) and answer.times is not None:
                self._stories.append(_story(self._open.pop(answer.rid), answer))
            elif isinstance(answer, Rejected) and answer.code != "duplicate_id":
                del self._open[answer.rid]

    def file(self) -> TimelineFile:
        """All of it. Requests that were open at the end are counted, and not shown."""
        marks = _without_rests(self._ring.since(0))
        end_ns = max([self._now_ns, *(mark.end_ns for mark in marks)])
        frame = Frame(
            replica=0,
            now_ns=end_ns,
            steps=marks,
            stories=list(self._stories),
            omitted=len(self._open),
            pages={},
            tree=None,
        )
        return TimelineFile(frames=[frame])


def _story(asked: Generate, answer: Finished | Rejected) -> Story:
    assert answer.times is not None, "only those with times are told"
    finished = answer if isinstance(answer, Finished) else None
    return Story(
        rid=asked.rid,
        group=asked.group,
        state="ended",
        outcome=answer.reason.value if isinstance(answer, Finished) else answer.code,
        prompt_tokens=len(asked.prompt),
        cached_tokens=finished.cached_tokens if finished else 0,
        computed_tokens=0,
        output_tokens=finished.output_tokens if finished else 0,
        retractions=finished.retractions if finished else 0,
        times=answer.times,
    )


def _without_rests(marks: Sequence[StepMark]) -> list[StepMark]:
    """Steps after which nothing was left to do end, as far as a recording knows, when the next request comes.

    They are taken to have been as long as the step before.
    """
    found: list[StepMark] = []
    length_ns = 0
    for mark in marks:
        if not (mark.running or mark.queued):
            mark = structs.replace(mark, end_ns=min(mark.end_ns, mark.start_ns + length_ns))
        length_ns = mark.end_ns - mark.start_ns
        found.append(mark)
    return found
