"""What a plan may and may not do."""

import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from msgspec import structs

from model.interface import Family
from scheduler.assembly import assemble
from scheduler.commands import Generate, Reason, Shutdown
from scheduler.engine import Engine
from scheduler.loop import run
from scheduler.observe import Event
from scheduler.planner import Plan
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask
from tests.strategies import Workload, workloads


class Twice:
    """Asks for every plan twice and looks at what it holds."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.engine: Engine | None = None

    def observe(self, event: Event) -> None:
        if not isinstance(event, Plan) or self.engine is None:
            return
        assert event.canonical() == self.engine.plan().canonical(), "planning twice gave two plans"
        work = [*event.decode, *(piece.request for piece in event.pieces)]
        assert len({request.number for request in work}) == len(work), "a request has two rows"
        assert len(work) <= self.workload.settings.max_rows
        assert all(request.finish is None for request in work), "an ended request is planned"
        assert all(request.inflight <= request.max_inflight for request in work)
        old = [request for request in event.decode if request not in event.admit]
        assert len(old) <= -(-self.engine.occupancy().running // self.workload.settings.micro_batches)
        assert not (event.drain and (event.size or event.admit or event.retract)), "a drain does nothing else"
        assert all(not request.unread for request in event.retract), "a request in flight is retracted"
        assert not (event.retract and event.admit)
        assert (event.family is Family.MIXED) == bool(event.pieces) or event.family is Family.SCORE


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads())
def test_planning_changes_nothing_and_keeps_to_its_limits(workload: Workload) -> None:
    script = {turn: list(commands) for turn, commands in workload.script.items()}
    script[10_000] = [(0, Shutdown())]
    watcher = Twice(workload)
    engine = assemble(ScriptedPort(script), KVEchoRunner(workload.shapes), workload.settings, (watcher,))
    watcher.engine = engine
    run(engine, workload.settings.depth)


def first_plans(requests: list[Generate], turns: int) -> list[Plan]:
    engine = assemble(ScriptedPort({0: [(0, r) for r in requests]}), KVEchoRunner(SHAPES), SETTINGS, ())
    made: list[Plan] = []
    for _ in range(turns):
        engine.receive()
        made.append(engine.plan())
        step = engine.launch(made[-1])
        if step is not None:
            engine.commit(step)
    return made


def test_the_first_request_held_back_names_its_reason_and_holds_back_all_behind() -> None:
    # document: O-19
    long, short = list(range(1, 31)), [1, 2]
    plan = first_plans([ask("a", long, 2), ask("b", long, 2), ask("c", short, 2)], 1)[0]
    assert [(blocked.request.rid, blocked.reason) for blocked in plan.blocked] == [("b", Reason.TOKEN_BUDGET)]


def test_a_fifth_request_waits_for_a_slot() -> None:
    plans = first_plans([ask(str(i), [i + 1], 9) for i in range(5)], 1)
    assert [request.rid for request in plans[0].admit] == ["0", "1", "2", "3"]
    assert plans[0].blocked[0].reason is Reason.NO_SLOT


def test_one_token_prompts_are_decode_rows_from_the_start() -> None:
    plan = first_plans([ask("a", [1], 3), ask("b", [2], 3)], 1)[0]
    assert (plan.family, plan.size, len(plan.decode)) == (Family.DECODE, 2, 2)


def test_decode_rows_and_pieces_of_prompts_share_a_step() -> None:
    # document: O-18, O-43
    plans = first_plans([ask("a", [1, 2], 9), ask("b", list(range(1, 41)), 3)], 2)
    assert plans[1].family is Family.MIXED
    assert [request.rid for request in plans[1].decode] == ["a"]
    assert [piece.request.rid for piece in plans[1].pieces] == ["b"]


@dataclass
class Decodes:
    """The rows of every decode step."""

    rows: list[set[str]] = field(default_factory=list)

    def observe(self, event: Event) -> None:
        if isinstance(event, Plan) and event.decode and not event.pieces:
            self.rows.append({request.rid for request in event.decode})


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_rows_are_dealt_among_as_many_steps_as_there_are_stages(stages: int, ahead: int) -> None:
    count = 4
    setting = structs.replace(SETTINGS, depth=stages - 1 + ahead, max_inflight=ahead, micro_batches=stages)
    seen = Decodes()
    requests = [ask(str(i), [i + 1, 5], 30) for i in range(count)]
    script = {0: [(0, request) for request in requests], 1000: [(0, Shutdown())]}
    run(assemble(ScriptedPort(script), KVEchoRunner(SHAPES), setting, (seen,)), setting.depth)
    steady = seen.rows[2 * stages : 20 * stages]
    for first in range(0, len(steady) - stages, stages):
        turn = steady[first : first + stages]
        assert sum(map(len, turn)) == count == len(set.union(*turn)), "a row is in two steps under way, or in none"
        assert max(map(len, turn)) <= -(-count // stages)


def test_importing_the_core_does_not_pull_in_jax_or_zmq() -> None:
    modules = "planner, engine, loop, assembly, replay, local_channel"
    code = f"import sys; from scheduler import {modules}; print(sorted({{'jax', 'zmq', 'flax'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
