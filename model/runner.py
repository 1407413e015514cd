"""The runner: keeps the weights and the donated state, launches compiled steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import jax
import numpy as np
from numpy.typing import NDArray

from model.batch import Program
from model.expert_places import ExpertTable
from model.host_pool import HostPool, SaveHandle
from model.interface import CountRow, Family, PageId, Shapes, StepHandle, StepInput, StepOutput
from model.pipeline import Pipeline, Stage
from model.programs import Programs, essential
from model.rehearsal import rehearse
from model.steps import Outcome
from model.widen import widen


class JaxHandle:
    """A launched step; its output is already on its way to the host."""

    def __init__(self, outcome: Outcome, rows: np.ndarray | None) -> None:
        self._outcome = outcome
        self._rows = rows
        for array in jax.tree.leaves(outcome):
            array.copy_to_host_async()

    def ready(self) -> bool:
        """Whether ``result`` would return at once."""
        return self._outcome.tokens.is_ready()  # pyright: ignore[reportAttributeAccessIssue]  missing in jax's stub

    def result(self) -> StepOutput:
        """Wait for the step; rows are those of the ``StepInput`` that was launched."""
        scored = self._outcome.scored
        if scored is None:
            return StepOutput(self._take(self._outcome.tokens))
        logprobs, ids, best = (self._take(x) for x in scored)
        return StepOutput(self._take(self._outcome.tokens), logprobs, ids, best)

    def _take(self, array: jax.Array) -> np.ndarray:
        host = np.asarray(array)
        return host if self._rows is None else host[self._rows]


@dataclass(slots=True, frozen=True)
class LaunchHooks:
    """Those who time and name steps: told of each right before it is started and right after."""

    before: tuple[Callable[[StepInput], None], ...] = ()
    after: tuple[Callable[[StepHandle], None], ...] = ()


NO_HOOKS: Final = LaunchHooks()


@dataclass(slots=True, frozen=True)
class RunnerHost:
    """``HostPages`` of a runner."""

    runner: "JaxRunner"
    pool: HostPool

    @property
    def fingerprint(self) -> bytes:
        """See ``HostPages``."""
        return self.pool.fingerprint

    def save(self, pages: Sequence[PageId], host_pages: Sequence[PageId]) -> SaveHandle:
        """See ``HostPages``."""
        return self.runner.save_pages(self.pool, pages, host_pages)

    def load(self, host_pages: Sequence[PageId], pages: Sequence[PageId]) -> None:
        """See ``HostPages``."""
        self.runner.load_pages(self.pool, host_pages, pages)

    def read(self, host_page: PageId) -> bytes:
        """See ``HostPages``."""
        return self.pool.read(host_page)

    def write(self, host_page: PageId, data: bytes) -> bool:
        """See ``HostPages``."""
        return self.pool.write(host_page, data)


@dataclass(slots=True, frozen=True)
class RunnerExperts:
    """``ExpertHost`` of a runner."""

    runner: "JaxRunner"
    table: ExpertTable

    @property
    def layers(self) -> tuple[int, ...]:
        """See ``ExpertHost``."""
        return self.table.layers

    def counts(self) -> NDArray[np.uint32]:
        """See ``ExpertHost``."""
        return self.table.by_expert(self.runner.routed())

    def imbalance(self, loads: NDArray[np.int64]) -> list[float]:
        """See ``ExpertHost``."""
        return self.table.imbalance(loads)

    def rebalance(self, loads: NDArray[np.int64]) -> None:
        """See ``ExpertHost``."""
        self.runner.move_experts(self.table, loads)


class JaxRunner:
    """``Runner`` over compiled JAX programs. Used from one thread."""

    def __init__(
        self,
        programs: Programs,
        stages: Sequence[Stage],
        shapes: Shapes,
        hooks: LaunchHooks = NO_HOOKS,
        host: HostPool | None = None,
    ) -> None:
        self._programs = programs
        self._pipeline = Pipeline(stages, shapes)
        self._last = self._pipeline.stages[-1]
        whole = programs.recipes[0].model
        alone = whole.last and whole.spec.experts is not None
        self._experts = ExpertTable(whole) if alone else None
        self._host = host
        self._shapes = shapes
        self._hooks = hooks

    @property
    def shapes(self) -> Shapes:
        """The ladders."""
        return self._shapes

    @property
    def host(self) -> "RunnerHost | None":
        """Pages in host memory, if there are any."""
        return None if self._host is None else RunnerHost(self, self._host)

    @property
    def experts(self) -> RunnerExperts | None:
        """The experts of a mixture that is not cut into stages."""
        return None if self._experts is None else RunnerExperts(self, self._experts)

    def routed(self) -> NDArray[np.uint32]:
        """Tokens that were sent to each place of each layer, [layers, places]; waits for the steps launched so far."""
        routed = self._last.state.routed
        assert routed is not None, "a dense model routes nothing"
        return np.asarray(routed)

    def move_experts(self, table: ExpertTable, loads: NDArray[np.int64]) -> None:
        """Have the steps launched from now on find the experts elsewhere; waits for the steps launched so far."""
        jax.block_until_ready(self._last.state)
        self._last.leaves = table.rebalance(loads, self._last.leaves)

    def save_pages(self, host: HostPool, pages: Sequence[PageId], host_pages: Sequence[PageId]) -> SaveHandle:
        """Begin to copy pages to host memory, as the steps launched so far leave them."""
        return host.save(self._last.state, pages, host_pages)

    def load_pages(self, host: HostPool, host_pages: Sequence[PageId], pages: Sequence[PageId]) -> None:
        """Copy pages from host memory; the steps launched from now on see them."""
        self._last.state = host.load(self._last.state, host_pages, pages)

    def launch(self, step: StepInput) -> JaxHandle:
        """Start one step; the devices run steps in the order of launching."""
        for hook in self._hooks.before:
            hook(step)
        for row in step.counts:
            self._rebuild(row)
        wanted = Program(step.family, step.variant, step.size)
        program = self._programs.choose(wanted)
        rows = None
        if program != wanted:
            rows = self._old_rows(step, program.size)
            step = widen(step, program.size, self._shapes)
        handle = JaxHandle(self._pipeline.run(self._programs.step(program), step), rows)
        for hook in self._hooks.after:
            hook(handle)
        return handle

    def warm_up(self) -> None:
        """Run what serving begins with once each, before it begins."""
        mixed, *decode = essential(self._shapes)
        for program in (*decode, mixed):  # as they become ready
            self._programs.wait(program)
            self.launch(rehearse(program, self._shapes)).result()

    def compiled_late(self) -> int:
        """Programs that a step had to wait for since the start."""
        return self._programs.late

    def _rebuild(self, row: CountRow) -> None:
        size, program = self._programs.counts(row.ids.size)

        def padded(x: np.ndarray, fill: int) -> np.ndarray:
            return np.pad(x, (0, size - x.size), constant_values=fill).astype(np.int32)

        beyond = np.iinfo(np.int32).max
        last = self._last
        last.state = program(
            last.state, np.int32(row.slot), padded(row.ids, beyond), padded(row.prompt, 0), padded(row.output, 0)
        )

    def _old_rows(self, step: StepInput, size: int) -> np.ndarray:
        """Where the rows of ``step`` lie in the program of ``size``."""
        old, new = (self._shapes.rows(step.family, s) for s in (step.size, size))
        at = old - self._shapes.max_pieces if step.family is Family.MIXED else old
        return np.concatenate([np.arange(at), np.arange(at + new - old, new)])
