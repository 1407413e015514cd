"""The shipped engine on a fake clock: a port that knows when requests arrive, a runner that knows how long steps take.

Nothing here decides anything: planner, cache and policies are those of ``assemble``. The device is a queue: a step
begins when it is launched and the one before has ended; reading it moves the clock to its end; requests enter at the
first turn after their arrival.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

import numpy as np
from msgspec import structs

from model.interface import MAX_TOP_LOGPROBS, Family, Shapes, StepInput, StepOutput
from scheduler.assembly import Settings, assemble
from scheduler.commands import Command, Finished, Generate, Rejected, Shutdown
from scheduler.figures import Meter
from scheduler.loop import run
from scheduler.observe import Event
from scheduler.planner import Plan
from scheduler.port import Answer
from scheduler.request import Request
from scheduler.step_times import StepClock
from scheduler.tick import Tick
from scheduler.trace import Arrival, TraceError, ending

TURN_NS: Final = 100_000
"""Host time of a turn of the loop (docs/benchmarks.md, "The scheduler alone")."""


class Clock:
    """Simulated nanoseconds."""

    def __init__(self) -> None:
        self.now_ns = 1

    def reach(self, time_ns: int) -> None:
        """Move on to a time, unless it is past."""
        self.now_ns = max(self.now_ns, time_ns)


class Source(Protocol):
    """Where requests come from."""

    def due_ns(self) -> int | None:
        """When the next one arrives; None: there is no further one, or not before another is answered."""
        ...

    def take(self) -> Arrival:
        """The next one."""
        ...

    def answered(self, now_ns: int) -> None:
        """A request was answered."""
        ...


class Timeline:
    """Requests that arrive whatever becomes of the others, in order of time."""

    def __init__(self, arrivals: Iterable[Arrival]) -> None:
        self._rest = iter(arrivals)
        self._next = next(self._rest, None)

    def due_ns(self) -> int | None:
        """See ``Source``."""
        return None if self._next is None else self._next.at_ns

    def take(self) -> Arrival:
        """See ``Source``."""
        taken = self._next
        assert taken is not None, "there is no further arrival"
        self._next = next(self._rest, None)
        return taken

    def answered(self, now_ns: int) -> None:
        """See ``Source``."""


class ClosedLoop:
    """So many clients, each of which asks again as soon as it is answered."""

    def __init__(self, arrivals: Iterable[Arrival], concurrency: int) -> None:
        self._rest: Iterator[Arrival] = iter(arrivals)
        self._due = deque([0] * concurrency)
        self._next = next(self._rest, None)

    def due_ns(self) -> int | None:
        """See ``Source``."""
        return self._due[0] if self._due and self._next is not None else None

    def take(self) -> Arrival:
        """See ``Source``."""
        taken = self._next
        assert taken is not None, "there is no further arrival"
        self._next = next(self._rest, None)
        return taken._replace(at_ns=self._due.popleft())

    def answered(self, now_ns: int) -> None:
        """See ``Source``."""
        self._due.append(now_ns)


class _Lengths:
    """Token counts at which the requests that end by themselves do so, by id, while they are open."""

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}


class _SimulatedPort:
    """Hands out what has arrived by the fake clock's time; says Shutdown when all is answered."""

    def __init__(self, source: Source, clock: Clock, lengths: _Lengths, meter: Meter, stop_token: int) -> None:
        self._source = source
        self._clock = clock
        self._lengths = lengths
        self._meter = meter
        self._stop_token = stop_token
        self._number = 0

    def poll(self) -> Tick:
        ended_ns = self._clock.now_ns
        self._clock.now_ns += TURN_NS
        return self._tick(ended_ns, [])

    def wait(self, limit_s: float | None = None) -> Tick:
        del limit_s
        ended_ns, due_ns = self._clock.now_ns, self._source.due_ns()
        self._clock.now_ns += TURN_NS
        if due_ns is None:
            return self._tick(ended_ns, [(0, Shutdown())])
        self._clock.reach(due_ns)
        return self._tick(ended_ns, [])

    def send(self, answers: list[Answer]) -> None:
        self._meter.sent(answers)
        for _, answer in answers:
            if isinstance(answer, Finished | Rejected):
                self._source.answered(self._clock.now_ns)
            if isinstance(answer, Finished):
                self._lengths.ends.pop(answer.rid, None)

    def _tick(self, ended_ns: int, commands: list[tuple[int, Command]]) -> Tick:
        now_ns, source = self._clock.now_ns, self._source
        self._meter.turn(ended_ns, now_ns)
        while (due_ns := source.due_ns()) is not None and due_ns <= now_ns:
            commands.append((0, self._enter(source.take())))
        self._number += 1
        return Tick(self._number, now_ns, commands)

    def _enter(self, arrival: Arrival) -> Command:
        command, length = arrival.command, arrival.output_tokens
        if not isinstance(command, Generate):
            return command
        self._meter.arrived(command.rid, arrival.at_ns)
        stops = length is not None and length < command.params.max_new_tokens
        if length is not None and stops:
            # the step that holds the token before it samples the last one
            self._lengths.ends[command.rid] = len(command.prompt) + length - 1
        return ending(command, self._stop_token, stops)


class _SimulatedHandle:
    """A step that ends at a time."""

    def __init__(self, output: StepOutput, clock: Clock, ends_ns: int) -> None:
        self._output = output
        self._clock = clock
        self._ends_ns = ends_ns

    def ready(self) -> bool:
        return self._clock.now_ns >= self._ends_ns

    def result(self) -> StepOutput:
        self._clock.reach(self._ends_ns)
        return self._output


class _SimulatedRunner:
    """A runner without a model, one step after the other; an ``Observer``, to learn who got which slot."""

    def __init__(self, shapes: Shapes, steps: StepClock, clock: Clock, lengths: _Lengths, meter: Meter) -> None:
        self._shapes = shapes
        self._steps = steps
        self._clock = clock
        self._lengths = lengths
        self._meter = meter
        self._free_ns = 0
        """When the device has done all that was launched."""
        self._admitted: list[Request] = []
        self._silent: dict[int, StepOutput] = {}
        """What no row stops at, by number of rows: one for each program at most."""
        self._ends = np.full(shapes.max_rows + 1, -1, np.int64)
        """By slot: how many tokens the step has computed that samples the stop token."""

    @property
    def shapes(self) -> Shapes:
        return self._shapes

    def observe(self, event: Event) -> None:
        if isinstance(event, Plan):
            self._admitted += event.admit

    @property
    def host(self) -> None:
        return None

    def compiled_late(self) -> int:
        return 0

    def launch(self, step: StepInput) -> _SimulatedHandle:
        for request in self._admitted:
            if request.lease is not None:
                self._ends[request.lease.slot] = self._lengths.ends.get(request.rid, -1)
        self._admitted.clear()
        self._meter.launched(step)
        self._free_ns = max(self._clock.now_ns, self._free_ns) + self._steps.took_ns(step)
        return _SimulatedHandle(self._output(step), self._clock, self._free_ns)

    def _silence(self, rows: int) -> StepOutput:
        if rows not in self._silent:
            self._silent[rows] = StepOutput(np.zeros(rows, np.int32))
        return self._silent[rows]

    def _output(self, step: StepInput) -> StepOutput:
        if not self._lengths.ends and step.full is None and step.targets is None:
            return self._silence(len(step.slots))
        stops = step.starts + step.lengths == self._ends[step.slots]
        tokens = (stops * (self._shapes.vocab_size - 1)).astype(np.int32)
        if step.full is None and step.targets is None:
            return StepOutput(tokens)
        rows = step.size if step.family is Family.SCORE else len(tokens)
        top = (rows, MAX_TOP_LOGPROBS)
        return StepOutput(tokens, np.zeros(rows, np.float32), np.zeros(top, np.int32), np.zeros(top, np.float32))


def simulate(source: Source, shapes: Shapes, settings: Settings, steps: StepClock) -> Meter:
    """Serve all that the source has; every request is answered exactly once.

    Raises:
        TraceError: the source is a trace that cannot be read, or the vocabulary is too small to stop by a token.
        ConfigError: a step ran that was not measured.
    """
    if shapes.vocab_size < 2:
        raise TraceError("a simulation needs a vocabulary of at least two tokens")
    settings = structs.replace(settings, host_pages=0)  # copies take time that nobody has measured
    clock, lengths, meter = Clock(), _Lengths(), Meter()
    runner = _SimulatedRunner(shapes, steps, clock, lengths, meter)
    port = _SimulatedPort(source, clock, lengths, meter, shapes.vocab_size - 1)
    run(assemble(port, runner, settings, (runner, meter)), settings.depth)
    meter.end(clock.now_ns)
    assert not meter.num_open, "a request was not answered"
    return meter
