"""Whatever has priority, gives way, waits or runs for too long: one answer each, the right tokens, and an end."""

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.interface import Shapes
from scheduler.assembly import Settings, assemble
from scheduler.commands import (
    Abort,
    AbortCause,
    Command,
    Delta,
    Finished,
    FinishReason,
    Generate,
    Rejected,
    Reply,
    Shutdown,
    Stop,
)
from scheduler.loop import run
from scheduler.observe import Event
from scheduler.planner import Plan
from scheduler.recording import Recorder
from scheduler.replay import replay
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.properties.test_any_schedule_equals_naive import naive
from tests.scheduler.build import ask
from tests.strategies import Workload, workloads

# document: O-19, O-24


@dataclass
class Preempted:
    """An observer that counts how often each request gave way."""

    times: Counter[int] = field(default_factory=Counter)

    def observe(self, event: Event) -> None:
        if isinstance(event, Plan):
            self.times.update(request.number for request in event.preempt)


@st.composite
def contested(draw: st.DrawFn) -> Workload:
    """A workload whose requests have priorities, under an engine where they count and limits bite."""
    workload = draw(workloads())
    priorities = st.sampled_from([None, -3, 0, 0, 1, 5, 2**31 - 1])
    given_priority = {request.rid: draw(priorities) for request in workload.requests}

    def with_priority(command: Command) -> Command:
        if not isinstance(command, Generate):
            return command
        return msgspec.structs.replace(command, priority=given_priority[command.rid])

    script = {turn: [(o, with_priority(c)) for o, c in commands] for turn, commands in workload.script.items()}
    timeouts = st.sampled_from([0, 0, 4_000, 12_000, 30_000])
    setting = msgspec.structs.replace(
        workload.settings,
        priority=draw(st.sampled_from(["high_first", "low_first", "high_first", "off"])),
        preemption_threshold=draw(st.integers(0, 4)),
        max_preemptions=draw(st.integers(0, 3)),
        max_queued=draw(st.sampled_from([1, 2, 100])),
        max_queued_tokens=draw(st.sampled_from([8, 20, 1000])),
        waiting_timeout_ns=draw(timeouts),
        running_timeout_ns=draw(timeouts),
    )
    return Workload(workload.shapes, setting, script, workload.requests)


def answers_by_request(port: ScriptedPort) -> dict[str, tuple[list[int], Finished | Rejected]]:
    tokens: dict[str, list[int]] = {}
    ends: dict[str, Finished | Rejected] = {}
    for _, answer in port.answers:
        if isinstance(answer, Reply):
            continue
        assert isinstance(answer, Delta | Finished | Rejected)
        assert answer.rid not in ends, "something came after the terminal answer"
        if isinstance(answer, Delta | Finished):
            delta = answer.delta if isinstance(answer, Finished) else answer
            tokens.setdefault(answer.rid, []).extend(delta.tokens)
        if not isinstance(answer, Delta):
            ends[answer.rid] = answer
    return {rid: (tokens.get(rid, []), end) for rid, end in ends.items()}


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=contested())
def test_with_priorities_limits_and_time_outs_every_request_gets_one_answer_and_no_wrong_token(
    workload: Workload,
) -> None:
    setting = workload.settings
    script = {turn: list(commands) for turn, commands in workload.script.items()}
    script[10_000] = [(0, Shutdown())]
    port, preempted = ScriptedPort(script), Preempted()
    run(assemble(port, KVEchoRunner(workload.shapes), setting, (preempted,)), setting.depth)
    assert all(times <= setting.max_preemptions for times in preempted.times.values())
    assert setting.priority != "off" or not preempted.times
    heard = answers_by_request(port)
    assert set(heard) == {request.rid for request in workload.requests}
    commands = [command for turn in workload.script.values() for _, command in turn]
    disturbed = {command.rid for command in commands if isinstance(command, Abort | Stop)}
    for request in workload.requests:
        tokens, end = heard[request.rid]
        expected = naive(request, workload.shapes.vocab_size)
        assert tokens == expected[: len(tokens)]
        if isinstance(end, Rejected):
            assert not tokens
            assert (end.status, end.code in {"queue_full", "displaced", "waiting_timeout"}) == (503, True)
            assert setting.waiting_timeout_ns or end.code != "waiting_timeout"
            assert setting.priority != "off" or end.code != "displaced"
            assert 1 <= (end.retry_after_s or 0) <= 120
        elif end.cause is AbortCause.RUNNING_TIMEOUT:
            assert end.reason is FinishReason.ABORT
            assert end.times.finished_ns - end.times.admitted_ns > setting.running_timeout_ns > 0
        elif request.rid not in disturbed:
            assert tokens == expected
            assert end.reason is not FinishReason.ABORT
            ran, waited = end.times.finished_ns - end.times.admitted_ns, end.times.admitted_ns - end.times.arrived_ns
            assert ran <= (setting.running_timeout_ns or ran)
            assert waited <= (setting.waiting_timeout_ns or waited)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=contested())
def test_time_outs_and_preemptions_come_out_the_same_in_a_replay(workload: Workload) -> None:
    script = {turn: list(commands) for turn, commands in workload.script.items()}
    script[10_000] = [(0, Shutdown())]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        recorder = Recorder(path.open("wb"), workload.shapes, workload.settings, 2**30, None)
        engine = assemble(ScriptedPort(script), KVEchoRunner(workload.shapes), workload.settings, (recorder,))
        run(engine, workload.settings.depth)
        recorder.close()
        assert replay(path) > 0


@st.composite
def storms(draw: st.DrawFn) -> Workload:
    """Long requests of no priority on few slots, and one short, more urgent request after another."""
    num_rows = draw(st.integers(1, 2))
    shapes = Shapes((num_rows,), (8,), 4, num_rows, 2, 2, 2, 16, 50)
    setting = Settings(
        context_length=32,
        num_pages=draw(st.integers(16, 24)),
        max_rows=num_rows,
        depth=draw(st.integers(0, 2)),
        max_inflight=1,
        eos_ids=(49,),
        priority="high_first",
        preemption_threshold=0,
        max_preemptions=draw(st.integers(0, 4)),
        check="every_step",
    )
    weak = [ask(f"weak{n}", [n + 1, 2, 3], 20) for n in range(num_rows)]
    strong = [
        msgspec.structs.replace(ask(f"strong{n}", [4, n], draw(st.integers(1, 3))), priority=draw(st.integers(0, 9)))
        for n in range(draw(st.integers(5, 12)))
    ]
    script: dict[int, list[tuple[int, Command]]] = {0: [(0, request) for request in weak]}
    turn = 0
    for request in strong:
        turn += draw(st.integers(1, 6))
        script.setdefault(turn, []).append((0, request))
    return Workload(shapes, setting, script, (*weak, *strong))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=storms())
def test_in_a_storm_of_more_urgent_requests_nobody_gives_way_more_often_than_allowed_and_all_come_to_their_end(
    workload: Workload,
) -> None:
    script = {turn: list(commands) for turn, commands in workload.script.items()}
    script[10_000] = [(0, Shutdown())]
    port, preempted = ScriptedPort(script), Preempted()
    run(assemble(port, KVEchoRunner(workload.shapes), workload.settings, (preempted,)), workload.settings.depth)
    assert all(times <= workload.settings.max_preemptions for times in preempted.times.values())
    heard = answers_by_request(port)
    for request in workload.requests:
        tokens, end = heard[request.rid]
        assert isinstance(end, Finished)
        assert tokens == naive(request, workload.shapes.vocab_size)
    retractions = {rid: end.retractions for rid, (_, end) in heard.items() if isinstance(end, Finished)}
    assert sum(preempted.times.values()) <= sum(retractions.values())


def test_a_request_gives_way_as_often_as_it_may_and_then_no_more() -> None:
    shapes = Shapes((1,), (8,), 4, 1, 2, 2, 2, 16, 50)
    setting = Settings(
        context_length=32,
        num_pages=16,
        max_rows=1,
        depth=1,
        max_inflight=1,
        eos_ids=(49,),
        priority="low_first",
        preemption_threshold=0,
        max_preemptions=2,
        check="every_step",
    )
    script: dict[int, list[tuple[int, Command]]] = {0: [(0, ask("weak", [1, 2, 3], 20))]}
    for number in range(6):
        script[4 + 5 * number] = [(0, msgspec.structs.replace(ask(f"s{number}", [4, number], 1), priority=-number))]
    script[10_000] = [(0, Shutdown())]
    port, preempted = ScriptedPort(script), Preempted()
    run(assemble(port, KVEchoRunner(shapes), setting, (preempted,)), setting.depth)
    assert preempted.times == {1: 2}
    order = [answer.rid for _, answer in port.answers if isinstance(answer, Finished)]
    assert order.index("weak") == 2
