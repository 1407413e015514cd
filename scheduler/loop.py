"""The engine's only loop. Its depth is the number of steps that may be in flight while the next is planned."""

from collections import deque
from typing import Protocol

from scheduler.planner import Plan
from scheduler.port import Answer
from scheduler.results import Step


class Verbs(Protocol):
    """The engine's five verbs, as the loop calls them; see ``Engine``. What times or names them stands around it."""

    @property
    def serving(self) -> bool:
        """Whether the loop goes on."""
        ...

    def receive(self) -> list[Answer]:
        """Read and handle what waits."""
        ...

    def plan(self) -> Plan:
        """Decide what comes next."""
        ...

    def launch(self, plan: Plan) -> Step | None:
        """Carry out a plan and start its step."""
        ...

    def commit(self, step: Step) -> list[Answer]:
        """Wait for a step and apply what it computed."""
        ...

    def emit(self, answers: list[Answer]) -> None:
        """Send answers."""
        ...


def run(engine: Verbs, depth: int) -> None:
    """Serve until a ``Shutdown`` has been handled. Blocks.

    Depth 0 reads every step before the next is planned; 1 overlaps the host with the device; stages - 1 fills a
    pipeline, and one more overlaps the host with its first stage. (Documents: O-5, O-6, O-7.)
    """
    pending: deque[Step] = deque()
    while engine.serving:
        engine.emit(engine.receive())
        step = engine.launch(engine.plan())
        if step is not None:
            pending.append(step)
        if pending and (len(pending) > depth or step is None):
            engine.emit(engine.commit(pending.popleft()))
    while pending:
        engine.emit(engine.commit(pending.popleft()))
