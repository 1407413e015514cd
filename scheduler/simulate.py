"""The shipped engine on a fake clock: a port that knows when requests arrive, a runner that knows how long steps take.

Nothing here decides anything: planner, cache and policies are those of ``assemble``. The device is a queue: a step
begins when it is launched and the one before has ended; reading it moves the clock to its end; requests enter at the
first turn after their arrival, and the copies of a host tier are heard of at the first turn after they are done.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from msgspec import structs

from model.interface import Shapes
from scheduler.assembly import Settings, assemble
from scheduler.commands import Command, Finished, Generate, Rejected, Shutdown
from scheduler.figures import Meter
from scheduler.loop import run
from scheduler.port import Answer
from scheduler.simulated_device import Clock, Device, Lengths, SimulatedCopies, SimulatedRunner
from scheduler.step_times import CopyTimes, StepClock, measured
from scheduler.tick import Tick
from scheduler.trace import Arrival, TraceError, ending

TURN_NS: Final = 100_000
"""Host time of a turn of the loop (docs/benchmarks.md, "The scheduler alone")."""
ROUND_TRIP_NS: Final = 5_000_000
"""From an answer's last token in the engine to the client's next request there: long enough to miss a turn."""


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
    """So many clients, each of which asks again as soon as it hears that it is answered."""

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
        self._due.append(now_ns + ROUND_TRIP_NS)


class _SimulatedPort:
    """Hands out what has arrived by the fake clock's time; says Shutdown when all is answered."""

    def __init__(
        self,
        source: Source,
        clock: Clock,
        lengths: Lengths,
        meter: Meter,
        stop_token: int,
        copies: SimulatedCopies | None,
    ) -> None:
        self._source = source
        self._clock = clock
        self._lengths = lengths
        self._copies = copies
        self._meter = meter
        self._stop_token = stop_token
        self._number = 0

    def poll(self) -> Tick:
        ended_ns = self._clock.now_ns
        self._clock.now_ns += TURN_NS
        return self._tick(ended_ns, [])

    def wait(self, limit_s: float | None = None) -> Tick:
        del limit_s
        ended_ns, copied_ns = self._clock.now_ns, self._copies.due_ns() if self._copies is not None else None
        due = [due_ns for due_ns in (self._source.due_ns(), copied_ns) if due_ns is not None]
        self._clock.now_ns += TURN_NS
        if not due:
            return self._tick(ended_ns, [(0, Shutdown())])
        self._clock.reach(min(due))
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
        return Tick(self._number, now_ns, commands, self._copies.take() if self._copies is not None else [])

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


def simulate(
    source: Source, shapes: Shapes, settings: Settings, steps: StepClock, copy_times: CopyTimes | None = None
) -> Meter:
    """Serve all that the source has; every request is answered exactly once. A storage is left out.

    Raises:
        TraceError: the source is a trace that cannot be read, or the vocabulary is too small to stop by a token.
        ConfigError: a step ran that was not measured, or there is a host tier whose copies were not.
    """
    if shapes.vocab_size < 2:
        raise TraceError("a simulation needs a vocabulary of at least two tokens")
    settings = structs.replace(settings, storage=False)
    clock, lengths, meter = Clock(), Lengths(), Meter()
    device = Device(clock)
    copies = SimulatedCopies(clock, device, measured(copy_times)) if settings.host_pages else None
    runner = SimulatedRunner(shapes, steps, clock, device, lengths, meter)
    port = _SimulatedPort(source, clock, lengths, meter, shapes.vocab_size - 1, copies)
    run(assemble(port, runner, settings, (runner, meter), copies=copies), settings.depth)
    meter.end(clock.now_ns)
    assert not meter.num_open, "a request was not answered"
    return meter
