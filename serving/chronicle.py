"""What became of a frontend's requests: the engine's account, and before and after it the frontend's own.

    received   sent        read by the engine      its end     answer here        last byte taken
    |-tokenizing-|---- new ----|-- its phases ... --|-- the last --|-- stalled reader --|

Each is told once, when its answer is there and nobody reads it any more. The clocks of processes on one machine agree;
where they do not, as in tests, what lies between them counts as the way to the engine.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import structs

from scheduler.commands import Finished, Phase, Reason, Rejected, RequestTimes, Story

StorySink = Callable[[Story], None]


@dataclass(slots=True)
class Marks:
    """When a request came and went, in nanoseconds of this process's clock."""

    group: str | None
    num_prompt: int
    received_ns: int
    sent_ns: int
    answer: Finished | Rejected | None = None
    answered_ns: int = 0
    left: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by its answer, or when none will come."""


class Chronicle:
    """The open requests of one frontend, and those answered whose answer is still being delivered."""

    def __init__(self, sink: StorySink) -> None:
        self._sink = sink
        self._marks: dict[str, Marks] = {}

    def opened(self, rid: str, marks: Marks) -> None:
        """A request goes to the engine."""
        self._marks[rid] = marks

    def answered(self, answer: Finished | Rejected, now_ns: int) -> None:
        """Its terminal answer came."""
        marks = self._marks.get(answer.rid)
        if marks is None:
            return
        marks.answer, marks.answered_ns = answer, now_ns
        marks.settled.set()
        if marks.left:
            self._tell(answer.rid, marks, now_ns)

    def left(self, rid: str, now_ns: int) -> None:
        """Nobody reads it any more: all of it was taken, or the client went away."""
        marks = self._marks.get(rid)
        if marks is None:
            return
        marks.left = True
        if marks.answer is not None:
            self._tell(rid, marks, now_ns)

    def forget(self, rid: str) -> None:
        """No answer will come."""
        marks = self._marks.pop(rid, None)
        if marks is not None:
            marks.settled.set()

    async def settled(self, rid: str) -> None:
        """Wait for its answer; returns at once when none will come."""
        marks = self._marks.get(rid)
        if marks is not None:
            await marks.settled.wait()

    def waits_s(self, rid: str) -> dict[str, float] | None:
        """Seconds by reason of an answered request, up to its answer."""
        marks = self._marks.get(rid)
        if marks is None or marks.answer is None:
            return None
        times = account(marks, marks.answered_ns)
        return {reason: spent / 1e9 for reason, spent in times.waited_ns.items()}

    def begun(self, story: Story) -> Story:
        """An engine's story of an open request, with what went before it if it is one of this frontend's."""
        marks = self._marks.get(story.rid)
        if marks is None:
            return story
        before = _before(marks, story.times)
        return structs.replace(story, times=_joined(before, story.times, [], marks.received_ns))

    def _tell(self, rid: str, marks: Marks, left_ns: int) -> None:
        del self._marks[rid]
        answer = marks.answer
        assert answer is not None, "only answered requests are told"
        finished, outcome = (answer, answer.reason.value) if isinstance(answer, Finished) else (None, answer.code)
        self._sink(
            Story(
                rid=rid,
                group=marks.group,
                state="ended",
                outcome=outcome,
                prompt_tokens=finished.prompt_tokens if finished else marks.num_prompt,
                cached_tokens=finished.cached_tokens if finished else 0,
                computed_tokens=0,
                output_tokens=finished.output_tokens if finished else 0,
                retractions=finished.retractions if finished else 0,
                times=account(marks, left_ns),
            )
        )


def account(marks: Marks, left_ns: int) -> RequestTimes:
    """Where the time of an answered request went, from its arrival here to ``left_ns``. Pure."""
    answer = marks.answer
    assert answer is not None, "the engine has answered"
    times = answer.times or RequestTimes(
        arrived_ns=marks.answered_ns,
        admitted_ns=0,
        first_token_ns=0,
        finished_ns=marks.answered_ns,
        waited_ns={},
    )
    after: list[Phase] = []
    if marks.answered_ns > times.finished_ns and _agrees(marks, times):
        after.append(Phase(times.reason, times.finished_ns, marks.answered_ns))
    if left_ns > marks.answered_ns:
        after.append(Phase(Reason.STALLED_READER, marks.answered_ns, left_ns))
    return _joined(_before(marks, times), times, after, marks.received_ns)


def _agrees(marks: Marks, times: RequestTimes) -> bool:
    """Whether the engine's clock is this process's."""
    return marks.sent_ns <= times.arrived_ns and (not marks.answered_ns or times.finished_ns <= marks.answered_ns)


def _before(marks: Marks, times: RequestTimes) -> list[Phase]:
    if _agrees(marks, times):
        arrived_ns = times.arrived_ns
    else:
        arrived_ns = max(marks.answered_ns - (times.finished_ns - times.arrived_ns), marks.sent_ns)
    before = [
        Phase(Reason.TOKENIZING, marks.received_ns, marks.sent_ns),
        Phase(Reason.NEW, marks.sent_ns, arrived_ns),
    ]
    return [phase for phase in before if phase.end_ns > phase.start_ns]


def _joined(before: list[Phase], times: RequestTimes, after: list[Phase], received_ns: int) -> RequestTimes:
    """The engine's account between what came before and after it, on this process's clock."""
    waited = dict(times.waited_ns)
    for phase in (*before, *after):
        waited[phase.reason.value] = waited.get(phase.reason.value, 0) + phase.end_ns - phase.start_ns
    return structs.replace(
        times,
        arrived_ns=received_ns,
        finished_ns=received_ns + sum(waited.values()),
        waited_ns=waited,
        phases=_in_line(received_ns, [*before, *times.phases], after, _unlisted(times)),
    )


def _unlisted(times: RequestTimes) -> int:
    """Time in phases that are not kept apart."""
    listed = sum(phase.end_ns - phase.start_ns for phase in times.phases)
    return sum(times.waited_ns.values()) - listed if times.omitted else 0


def _in_line(begin_ns: int, phases: list[Phase], after: list[Phase], gap_ns: int) -> list[Phase]:
    """Phases one after another from ``begin_ns`` on; neighbours of one reason and no piece become one."""
    line: list[Phase] = []
    for index, phase in enumerate([*phases, *after]):
        begin_ns += gap_ns if index == len(phases) else 0
        end_ns = begin_ns + phase.end_ns - phase.start_ns
        last = line[-1] if line else None
        joins = last is not None and last.end_ns == begin_ns and last.reason is phase.reason
        if last is not None and joins and not phase.last and not phase.by:
            line[-1] = structs.replace(last, end_ns=end_ns)
        else:
            line.append(structs.replace(phase, start_ns=begin_ns, end_ns=end_ns))
        begin_ns = end_ns
    return line
