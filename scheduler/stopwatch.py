"""How long each verb of each step took: stands around the engine and reads a clock, so that the core reads none."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from model.interface import StepInput
from scheduler.engine import Engine
from scheduler.observe import Committed, Event
from scheduler.planner import Plan
from scheduler.port import Answer
from scheduler.results import Step
from scheduler.roster import Occupancy
from scheduler.tick import Tick


@dataclass(slots=True)
class Laps:
    """Durations of one step, in nanoseconds. Phases are the host's work; waiting is in none of them."""

    receive: int = 0
    plan: int = 0
    build: int = 0
    """From the plan to the runner: requests moved, pages taken, the step laid out. A part of ``launch``."""
    launch: int = 0
    model: int = 0
    """From the runner's start to the output on the host. Steps in flight overlap."""
    commit: int = 0
    """After the output is there."""
    emit: int = 0
    total: int = 0
    """From the end of the step read before to the end of this one; where nothing was in flight, from the turn's input
    on. The totals of a run add up to the time in which there was work."""


@dataclass(slots=True)
class TimedStep:
    """A step that was launched and, when listeners hear of it, read."""

    step: int
    started_s: float
    """Unix seconds of the launch."""
    plan: Plan
    occupancy: Occupancy
    """After the plan was carried out."""
    cached_tokens: int
    """Prompt tokens that requests admitted since the step before found in the cache."""
    retractions: int
    """Since the step before: a plan that retracts may have no work of its own."""
    laps: Laps = field(default_factory=Laps)


class StepListener(Protocol):
    """Hears of every step once it is read, on the engine's thread. Must not block."""

    def timed(self, step: TimedStep) -> None:
        """Take one step."""
        ...


class Stopwatch:
    """Marks of the clock inside the verbs: an ``Observer``, and told by the runner of every launch.

    Args:
        clock: monotonic nanoseconds.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.woken_ns = 0
        """When the turn's input was there."""
        self.launched_ns = 0
        """When the runner was given the step launched last."""
        self.read_ns = 0
        """When the output of the step read last was on the host."""

    def observe(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Tick):
            self.woken_ns = self.clock()
        elif isinstance(event, Committed):
            self.read_ns = self.clock()

    def launching(self, step: StepInput) -> None:
        """The runner is about to start a step."""
        del step
        self.launched_ns = self.clock()


class TimedEngine:
    """An engine's five verbs, timed.

    Args:
        engine: it; its observers include ``watch``, and its runner tells ``watch`` of launches.
        watch: the clock and the marks inside the verbs.
        unix_s: the wall clock.
        listeners: hear of every step.
    """

    def __init__(
        self, engine: Engine, watch: Stopwatch, unix_s: Callable[[], float], listeners: Sequence[StepListener]
    ) -> None:
        self._engine = engine
        self._watch = watch
        self._unix_s = unix_s
        self._listeners = tuple(listeners)
        self._flight: deque[tuple[TimedStep, int]] = deque()
        """Steps not yet read, with the time of their launch; the loop's depth bounds it."""
        self._read: TimedStep | None = None
        """Committed, and its answers not yet sent."""
        self._turn = Laps()
        self._steps = self._cached = self._retracted = 0
        self._edge_ns = 0
        """The end of the step read last."""

    @property
    def serving(self) -> bool:
        """See ``Verbs``."""
        return self._engine.serving

    def receive(self) -> list[Answer]:
        """See ``Verbs``. With nothing in flight it may have slept until the turn's input came."""
        began = self._watch.clock()
        answers = self._engine.receive()
        ended = self._watch.clock()
        if not self._flight:
            began = self._edge_ns = self._watch.woken_ns
        self._turn = Laps(receive=ended - began)
        return answers

    def plan(self) -> Plan:
        """See ``Verbs``."""
        began = self._watch.clock()
        plan = self._engine.plan()
        self._turn.plan = self._watch.clock() - began
        return plan

    def launch(self, plan: Plan) -> Step | None:
        """See ``Verbs``."""
        began = self._watch.clock()
        step = self._engine.launch(plan)
        ended = self._watch.clock()
        self._cached += sum([request.cached_tokens for request in plan.admit if not request.retractions])
        self._retracted += len(plan.retract) + len(plan.preempt)
        if step is not None:
            launched, laps = self._watch.launched_ns, self._turn
            laps.build, laps.launch = launched - began, ended - began
            self._steps += 1
            full = self._engine.occupancy()
            timed = TimedStep(self._steps, self._unix_s(), plan, full, self._cached, self._retracted, laps)
            self._flight.append((timed, launched))
            self._cached = self._retracted = 0
        return step

    def commit(self, step: Step) -> list[Answer]:
        """See ``Verbs``."""
        answers = self._engine.commit(step)
        ended, read = self._watch.clock(), self._watch.read_ns
        timed, launched = self._flight.popleft()
        timed.laps.model, timed.laps.commit = read - launched, ended - read
        self._read = timed
        return answers

    def emit(self, answers: list[Answer]) -> None:
        """See ``Verbs``. The answers after a commit are the step's; those before it, of the turn that launched it."""
        began = self._watch.clock()
        self._engine.emit(answers)
        ended = self._watch.clock()
        timed, self._read = self._read, None
        if timed is None:
            self._turn.emit = ended - began
            return
        timed.laps.emit += ended - began
        timed.laps.total, self._edge_ns = ended - self._edge_ns, ended
        for listener in self._listeners:
            listener.timed(timed)
