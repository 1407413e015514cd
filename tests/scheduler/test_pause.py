"""Generation stands still on command, and goes on as if nothing had been."""

from dataclasses import dataclass, field

import pytest
from msgspec import structs

from scheduler.assembly import assemble
from scheduler.commands import (
    Abort,
    Command,
    ContinueGeneration,
    Finished,
    FinishReason,
    FlushCache,
    PauseGeneration,
    PauseMode,
    Reply,
    Shutdown,
    StepStats,
)
from scheduler.kv_events import KVEvent, KVEvents
from scheduler.loop import run
from scheduler.observe import Committed, Event
from scheduler.planner import Plan
from scheduler.port import Answer
from scheduler.tick import Tick
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask, play

# document: P-1, P-2, P-3, P-4, P-5

LOAD = [ask(f"r{i}", [1, 2, 3, i + 4], 12) for i in range(7)]
MODES = ["retract", "in_place"]


def paused(mode: PauseMode) -> Command:
    return PauseGeneration(call="p", mode=mode)


def going_on() -> Command:
    return ContinueGeneration(call="c")


@dataclass
class Witness:
    """Everything that leaves the engine, in order: events, published KV events, answers."""

    log: list[object] = field(default_factory=list)

    def observe(self, event: Event) -> None:
        self.log.append(event)


@dataclass
class WitnessedPort(ScriptedPort):
    witness: Witness = field(default_factory=Witness)

    def send(self, answers: list[Answer]) -> None:
        super().send(answers)
        self.witness.log += [answer for _, answer in answers]

    def wait(self, limit_s: float | None = None) -> Tick:
        self.witness.log.append("wait")
        if limit_s is not None and self.script:
            self.turn = max(self.turn, min(self.script))
        return super().wait(limit_s)


def witnessed(script: dict[int, list[Command]], interval: int = 1000) -> list[object]:
    """What happened; KV events are published every ``interval`` decode steps."""
    witness = Witness()
    turns = {turn: [(0, command) for command in commands] for turn, commands in script.items()}
    port = WitnessedPort({**turns, 10_000: [(0, Shutdown())]}, witness=witness)
    events = KVEvents(SHAPES.page_size, interval, lambda batch: witness.log.append(("kv", batch)))
    run(assemble(port, KVEchoRunner(SHAPES), SETTINGS, (witness, events), listener=events), SETTINGS.depth)
    return witness.log


def reply_at(log: list[object], call: str) -> int:
    return next(i for i, item in enumerate(log) if isinstance(item, Reply) and item.call == call)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("turn", [1, 2, 3, 5, 8])
def test_a_pause_under_load_changes_no_output(mode: PauseMode, turn: int) -> None:
    through = play({0: [*LOAD]})
    broken = play({0: [*LOAD], turn: [paused(mode)], turn + 20: [going_on()], turn + 40: []})
    for request in LOAD:
        ended, expected = broken.end(request.rid), through.end(request.rid)
        assert ended.reason is FinishReason.LENGTH
        tokens = [t for a in broken.of(request.rid) for t in (a.delta.tokens if isinstance(a, Finished) else a.tokens)]
        assert tokens == [
            t for a in through.of(request.rid) for t in (a.delta.tokens if isinstance(a, Finished) else a.tokens)
        ]
        assert ended.output_tokens == expected.output_tokens
        assert ended.times.waited_ns["paused"] > 0
        assert sum(ended.times.waited_ns.values()) == ended.times.finished_ns - ended.times.arrived_ns
    assert [reply.success for reply in broken.replies()] == [True, True]


@pytest.mark.parametrize("mode", ["abort", *MODES])
def test_nothing_is_launched_or_in_flight_between_the_answer_and_the_end_of_a_pause(mode: PauseMode) -> None:
    log = witnessed({0: [*LOAD], 4: [paused(mode)], 50: [ask("late", [9, 9, 9], 4)], 100: [going_on()]})
    begin, end = reply_at(log, "p"), reply_at(log, "c")
    assert begin < end
    during = log[begin:end]
    assert not [item for item in during if isinstance(item, Committed)]
    assert all(not item.size and not item.admit for item in during if isinstance(item, Plan))
    assert during.count("wait") >= 2  # it sleeps, and does not turn around and around
    late = next(item for item in log[end:] if isinstance(item, Finished) and item.rid == "late")
    assert late.reason is FinishReason.LENGTH  # taken and queued while paused


@pytest.mark.parametrize("mode", ["abort", *MODES])
def test_before_the_call_returns_throughput_is_zero_figures_are_out_and_events_published(mode: PauseMode) -> None:
    log = witnessed({0: [*LOAD], 9: [paused(mode)], 100: [going_on()]})
    begin = reply_at(log, "p")
    stats = [item for item in log[:begin] if isinstance(item, StepStats)]
    assert any(item.gen_throughput > 0 for item in stats)
    last = stats[-1]
    assert last.family == ""
    assert last.gen_throughput == last.input_throughput == 0
    assert (last.num_running, last.num_queued) == {"abort": (0, 0), "retract": (0, 7), "in_place": (4, 3)}[mode]
    assert (last.tokens_used > 0) is (mode == "in_place")
    committed = max(i for i, item in enumerate(log[:begin]) if isinstance(item, Committed))
    published = [i for i, item in enumerate(log[:begin]) if isinstance(item, tuple)]
    assert published[-1] > committed


def kv_of(log: list[object]) -> list[KVEvent]:
    return [event for item in log if isinstance(item, tuple) for event in item[1]]


def test_events_that_were_pending_at_a_pause_are_not_published_again() -> None:
    log = witnessed({0: [*LOAD], 9: [paused("in_place")], 100: [going_on()]})
    hashes = [page for event in kv_of(log) for page in getattr(event, "block_hashes", [])]
    assert len(hashes) == len(set(hashes))


def test_an_aborting_pause_answers_every_request_and_takes_the_next_ones() -> None:
    played = play({0: [*LOAD], 3: [paused("abort")], 6: [ask("next", [5, 5], 3)], 9: [going_on()]})
    assert all(played.end(request.rid).reason is FinishReason.ABORT for request in LOAD)
    assert played.end("next").output_tokens == 3


def test_retracted_requests_keep_their_order_and_are_not_counted_as_retractions() -> None:
    log = witnessed({0: [*LOAD], 5: [paused("retract")], 50: [going_on()]})
    last = [item for item in log if isinstance(item, StepStats)][-1]
    assert last.retractions == 0
    after = [item for item in log[reply_at(log, "c") :] if isinstance(item, Plan) and item.admit]
    assert [request.rid for plan in after for request in plan.admit][:4] == ["r0", "r1", "r2", "r3"]


def test_a_flush_works_while_retracted_requests_wait_and_not_while_requests_hold_pages() -> None:
    def success(mode: PauseMode) -> bool:
        script: dict[int, list[Command]] = {0: [*LOAD], 3: [paused(mode)], 30: [FlushCache(call="f")], 60: [going_on()]}
        played = play(script)
        assert all(played.end(request.rid).reason is FinishReason.LENGTH for request in LOAD)
        return next(reply.success for reply in played.replies() if reply.call == "f")

    assert success("retract")
    assert not success("in_place")


def test_requests_can_be_ended_in_a_pause() -> None:
    played = play({0: [*LOAD], 3: [paused("in_place")], 20: [Abort(rid="r1"), Abort(rid="r6")], 40: [going_on()]})
    ended = {request.rid: played.end(request.rid).reason for request in LOAD}
    assert [rid for rid, reason in ended.items() if reason is FinishReason.ABORT] == ["r1", "r6"]


def test_pauses_can_follow_each_other_and_continuing_without_one_is_harmless() -> None:
    played = play(
        {
            0: [going_on(), *LOAD],
            3: [paused("in_place")],
            20: [structs.replace(paused("retract"), call="q")],
            40: [going_on(), going_on()],
        }
    )
    assert [(reply.call, reply.success) for reply in played.replies()] == [(c, True) for c in "cpqcc"]
    assert all(played.end(request.rid).reason is FinishReason.LENGTH for request in LOAD)


def test_a_pause_that_ends_before_it_has_begun_says_so() -> None:
    played = play({0: [*LOAD], 3: [paused("retract"), going_on()]})
    assert [(reply.call, reply.success) for reply in played.replies()] == [("p", False), ("c", True)]
    ended = play({0: [*LOAD], 3: [paused("retract"), Shutdown()]})
    assert [reply.success for reply in ended.replies()] == [False]


def test_an_idle_engine_pauses_too() -> None:
    played = play({0: [paused("in_place")], 5: [*LOAD], 9: [going_on()]})
    assert all(played.end(request.rid).reason is FinishReason.LENGTH for request in LOAD)
    assert played.replies()[0].success
