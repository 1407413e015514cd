"""The engine's only loop. Its depth is the number of steps that may be in flight while the next is planned."""

from collections import deque

from scheduler.engine import Engine
from scheduler.results import Step


def run(engine: Engine, depth: int) -> None:
    """Serve until a ``Shutdown`` has been handled. Blocks.

    Depth 0 reads every step before the next is planned; 1 overlaps the host with the device; stages - 1 fills a
    pipeline. (Documents: O-5, O-6, O-7.)
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
