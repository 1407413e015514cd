"""What times and names an engine's steps, put together from the launch file."""

import time
from dataclasses import dataclass, field

from configs.schema import Observe
from model.interface import Profiler
from scheduler.commands import DumpState, GetState
from scheduler.engine import Engine
from scheduler.loop import Verbs
from scheduler.observe import Observer
from scheduler.profiling import NamedEngine, ProfileControl, with_step_times
from scheduler.step_records import StepRecords, open_step_records
from scheduler.step_time_dict import StepTimeDict
from scheduler.stopwatch import StepListener, Stopwatch, TimedEngine


@dataclass(slots=True, frozen=True)
class Instruments:
    """Everything that stands around one engine."""

    profiler: Profiler
    records: StepRecords | None
    step_times: StepTimeDict | None
    reporter: StepListener | None = None
    """Tells the collector of every step."""
    stopwatch: Stopwatch = field(default_factory=lambda: Stopwatch(time.perf_counter_ns))

    @property
    def timing(self) -> bool:
        """Whether anybody wants the durations of steps."""
        return bool(self._listeners)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Those who must see the engine's events."""
        return (self.stopwatch,) if self.timing else ()

    def around(self, engine: Engine) -> Verbs:
        """The engine as the loop is to see it. It was built with ``observers``, and its runner with the stopwatch."""
        engine.handlers.update(ProfileControl(self.profiler).handlers)
        if self.step_times is not None:
            for question in (GetState, DumpState):
                engine.handlers[question] = with_step_times(engine.handlers[question], self.step_times)
        timed: Verbs = engine
        if self.timing:
            timed = TimedEngine(engine, self.stopwatch, time.time, self._listeners)
        return NamedEngine(timed, self.profiler)

    def close(self) -> None:
        """Write what is left."""
        if self.records is not None:
            self.records.close()

    @property
    def _listeners(self) -> list[StepListener]:
        return [one for one in (self.records, self.step_times, self.reporter) if one is not None]


def instruments(observe: Observe, profiler: Profiler, reporter: StepListener | None = None) -> Instruments:
    """What a launch file asks for.

    Raises:
        ConfigError: a file cannot be written.
    """
    step_times = StepTimeDict() if observe.record_step_time else None
    return Instruments(profiler, open_step_records(observe), step_times, reporter if observe.metrics else None)
