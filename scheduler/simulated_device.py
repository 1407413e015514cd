"""A device without a model: a queue of work that takes as long as a table says, on a fake clock."""

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np

from model.interface import MAX_TOP_LOGPROBS, Family, PageId, Shapes, StepInput, StepOutput
from scheduler.completions import Completion, Saved
from scheduler.copies import Chain
from scheduler.figures import Meter
from scheduler.observe import Event
from scheduler.planner import Plan
from scheduler.request import Request
from scheduler.step_times import CopyTimes, StepClock

_NO_STORAGE: Final = "a simulation has no storage"


class Clock:
    """Simulated nanoseconds."""

    def __init__(self) -> None:
        self.now_ns = 1

    def reach(self, time_ns: int) -> None:
        """Move on to a time, unless it is past."""
        self.now_ns = max(self.now_ns, time_ns)


class Device:
    """Does one thing after the other, each as soon as it is launched and the one before has ended."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._free_ns = 0
        """When all that was launched is done."""

    def launch(self, length_ns: int) -> int:
        """Queue work; returns when it ends."""
        self._free_ns = max(self._clock.now_ns, self._free_ns) + length_ns
        return self._free_ns


class Lengths:
    """Token counts at which the requests that end by themselves do so, by id, while they are open."""

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}


class SimulatedHandle:
    """A step that ends at a time."""

    def __init__(self, output: StepOutput, clock: Clock, ends_ns: int) -> None:
        self._output = output
        self._clock = clock
        self._ends_ns = ends_ns

    def ready(self) -> bool:
        """See ``StepHandle``."""
        return self._clock.now_ns >= self._ends_ns

    def result(self) -> StepOutput:
        """See ``StepHandle``; moves the clock to the step's end."""
        self._clock.reach(self._ends_ns)
        return self._output


class SimulatedRunner:
    """A ``Runner``, and an ``Observer`` to learn who got which slot."""

    def __init__(
        self, shapes: Shapes, steps: StepClock, clock: Clock, device: Device, lengths: Lengths, meter: Meter
    ) -> None:
        self._shapes = shapes
        self._steps = steps
        self._clock = clock
        self._device = device
        self._lengths = lengths
        self._meter = meter
        self._admitted: list[Request] = []
        self._silent: dict[int, StepOutput] = {}
        """What no row stops at, by number of rows: one for each program at most."""
        self._ends = np.full(shapes.max_rows + 1, -1, np.int64)
        """By slot: how many tokens the step has computed that samples the stop token."""

    @property
    def shapes(self) -> Shapes:
        """See ``Runner``."""
        return self._shapes

    def observe(self, event: Event) -> None:
        """Note whom a plan admits."""
        if isinstance(event, Plan):
            self._admitted += event.admit

    @property
    def host(self) -> None:
        """See ``Runner``; copies are ``SimulatedCopies``."""
        return None

    def compiled_late(self) -> int:
        """See ``Runner``."""
        return 0

    def launch(self, step: StepInput) -> SimulatedHandle:
        """See ``Runner``."""
        for request in self._admitted:
            if request.lease is not None:
                self._ends[request.lease.slot] = self._lengths.ends.get(request.rid, -1)
        self._admitted.clear()
        self._meter.launched(step)
        return SimulatedHandle(self._output(step), self._clock, self._device.launch(self._steps.took_ns(step)))

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


class SimulatedCopies:
    """``Copies`` that take a page's time each, on the device and in its order; without a storage.

    Saves in parallel with steps, as a GPU's copy engines do them, are not modelled: they count as work of the device.
    """

    def __init__(self, clock: Clock, device: Device, times: CopyTimes) -> None:
        self._clock = clock
        self._device = device
        self._save_ns = round(times.save_s * 1e9)
        self._load_ns = round(times.load_s * 1e9)
        self._under_way: deque[tuple[int, Completion]] = deque()
        """When each is done, ascending; bounded by the pages of the host tier."""

    def due_ns(self) -> int | None:
        """When the next copy is done that the engine hears of; None: nothing is under way."""
        return self._under_way[0][0] if self._under_way else None

    def take(self) -> list[Completion]:
        """What is done by now."""
        done: list[Completion] = []
        while self._under_way and self._under_way[0][0] <= self._clock.now_ns:
            done.append(self._under_way.popleft()[1])
        return done

    def save(self, ticket: int, pages: Sequence[PageId], host_pages: Sequence[PageId]) -> None:
        """See ``Copies``."""
        self._under_way.append((self._device.launch(len(pages) * self._save_ns), Saved(ticket)))

    def load(self, host_pages: Sequence[PageId], pages: Sequence[PageId]) -> None:
        """See ``Copies``."""
        self._device.launch(len(pages) * self._load_ns)

    def store(self, ticket: int, chain: Chain, host_pages: Sequence[PageId]) -> None:
        """See ``Copies``."""
        raise AssertionError(_NO_STORAGE)

    def look_up(self, ticket: int, chain: Chain) -> None:
        """See ``Copies``."""
        raise AssertionError(_NO_STORAGE)

    def fetch(self, ticket: int, chain: Chain, host_pages: Sequence[PageId]) -> None:
        """See ``Copies``."""
        raise AssertionError(_NO_STORAGE)

    def attach(self, ticket: int, directory: str) -> None:
        """See ``Copies``."""
        raise AssertionError(_NO_STORAGE)

    def detach(self) -> None:
        """See ``Copies``."""
        raise AssertionError(_NO_STORAGE)

    def clear(self, ticket: int) -> None:
        """See ``Copies``."""
        raise AssertionError(_NO_STORAGE)

    def close(self) -> None:
        """See ``Copies``."""
