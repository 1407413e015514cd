"""Which steps a profile traces: pure, from the options and the steps as they come (documents: M-10, O-32)."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from model.interface import ProfileOptions, ProfileRefused

MAX_STEPS: Final = 10_000
"""Steps of one trace: it is held in memory until it is written."""


class Tracing(Enum):
    """What is on while a step runs."""

    OFF = "off"
    WARM_UP = "warm_up"
    """Traced and thrown away."""
    ON = "on"


@dataclass(slots=True)
class TraceSchedule:
    """Traces one after another, each of so many steps. Told of every step before and after its launch, in order."""

    first: int
    """The step from which on steps are counted."""
    wait: int
    warm_up: int
    active: int
    repeat: int
    left: dict[str, int] = field(default_factory=dict[str, int])
    """By stage, steps still to be traced; empty when stages are not traced apart."""
    by_stage: bool = False
    stage: str = ""
    """Of the trace that runs; steps of the other stage between its own are in it too, and are not counted."""
    length: int = 0
    """Steps of the trace that runs."""

    def before(self, step: int, stage: str) -> Tracing:
        """What is to be on while ``step`` runs."""
        if step < self.first or self.done(step - 1):
            return Tracing.OFF
        if self.by_stage:
            if not self.stage and self.left.get(stage):
                self.stage = stage
            return Tracing.ON if self.stage else Tracing.OFF
        at = (step - self.first) % (self.wait + self.warm_up + self.active)
        if at < self.wait:
            return Tracing.OFF
        return Tracing.WARM_UP if at < self.wait + self.warm_up else Tracing.ON

    def after(self, step: int, stage: str) -> bool:
        """Whether the trace that runs ends with ``step``."""
        self.length += 1
        if self.by_stage:
            if stage == self.stage:
                self.left[stage] -= 1
            ended = not self.left[self.stage] or self.length >= MAX_STEPS
            if ended:
                del self.left[self.stage]
                self.stage = ""
        else:
            cycle = self.wait + self.warm_up + self.active
            ended = (step - self.first) % cycle == cycle - 1
        if ended:
            self.length = 0
        return ended

    def done(self, step: int) -> bool:
        """Whether nothing is traced after ``step``."""
        if self.by_stage:
            return not self.left
        return step >= self.first + self.repeat * (self.wait + self.warm_up + self.active) - 1


def trace_schedule(options: ProfileOptions, forward_count: int) -> TraceSchedule:
    """The schedule of a profile that is asked for after step ``forward_count``.

    Raises:
        ProfileRefused: the options contradict each other.
    """
    if options.num_steps and options.active_steps:
        raise ProfileRefused("num_steps and active_steps both say how long to trace: give one of them.")
    active = options.active_steps or options.num_steps
    if active is not None and active > MAX_STEPS:
        raise ProfileRefused(f"A trace has at most {MAX_STEPS} steps.")
    first = max(options.start_step or 0, forward_count + 1)
    if not options.profile_by_stage:
        if active is None and options.repeat > 1:
            raise ProfileRefused("repeat needs active_steps: when does a trace end?")
        return TraceSchedule(first, options.wait_steps, options.warmup_steps, active or MAX_STEPS, options.repeat)
    if options.num_steps is None or options.wait_steps or options.warmup_steps or options.repeat > 1:
        raise ProfileRefused("profile_by_stage needs num_steps, and goes with no schedule.")
    left = dict.fromkeys(options.profile_stages, options.num_steps)
    return TraceSchedule(first, 0, 0, options.num_steps, 1, left, by_stage=True)
