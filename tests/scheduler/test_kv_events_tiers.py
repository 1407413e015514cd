"""A subscriber knows of the host tier too, each medium apart."""

from hypothesis import HealthCheck, given, settings

from scheduler.assembly import assemble
from scheduler.commands import Shutdown
from scheduler.kv_events import KVEvents
from scheduler.kv_subscriber import CacheContent
from scheduler.loop import run
from tests.fakes import EchoCopies, KVEchoRunner, ScriptedPort
from tests.properties.test_tiers import Below, tiered
from tests.scheduler.test_kv_events import Model
from tests.strategies import Workload

# document: M-3


def check(case: tuple[Workload, Below]) -> set[str]:
    """Run it, compare, and say which media held anything."""
    workload, below = case
    content, size = CacheContent(), workload.shapes.page_size
    events = KVEvents(size, 3, lambda batch: [content.apply(event) for event in batch] and None)
    model = Model(events, size)
    runner = KVEchoRunner(workload.shapes)
    copies = EchoCopies(runner, below.delays, {} if below.stored else None, below.shown)
    script = {turn: list(commands) for turn, commands in workload.script.items()}
    port = ScriptedPort({**script, 10_000: [(0, Shutdown())]}, copies=copies)
    engine = assemble(port, runner, workload.settings, (events,), listener=model, copies=copies)
    run(engine, workload.settings.depth)
    engine.close()
    events.flush()
    assert model.agrees(content)
    return {medium for (medium, _), blocks in content.blocks.items() if blocks}


def test_the_events_of_any_work_rebuild_every_tier() -> None:
    seen: set[str] = set()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=tiered())
    def every(case: tuple[Workload, Below]) -> None:
        seen.update(check(case))

    every()
    assert sorted(seen) == ["CPU_PINNED", "GPU"]
