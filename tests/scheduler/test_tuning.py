"""What operators may change of a running engine."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.assembly import assemble
from scheduler.commands import Command, Delta, Finished, GetState, Rejected, Reply, SetState, Shutdown
from scheduler.deadlines import TimeLimits
from scheduler.gates import Limits
from scheduler.loop import run
from scheduler.planner import Plan
from scheduler.recording import Recorder
from scheduler.replay import replay
from scheduler.tuning import Tuning, Values
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask, play

# document: O-41

MAX_ROWS = 8
GOOD = st.fixed_dictionaries(
    {},
    optional={
        "pp_max_micro_batch_size": st.integers(1, MAX_ROWS),
        "max_queued_requests": st.integers(1, 1_000_000),
        "max_queued_tokens": st.integers(1, 2**31 - 1),
        "waiting_timeout_s": st.floats(0, 86_400),
        "running_timeout_s": st.integers(0, 86_400),
    },
)
BAD = st.sampled_from(
    [
        ("pp_max_micro_batch_size", 0),
        ("pp_max_micro_batch_size", MAX_ROWS + 1),
        ("max_queued_requests", 1.5),
        ("max_queued_tokens", -1),
        ("waiting_timeout_s", 86_401),
        ("running_timeout_s", float("nan")),
        ("page_size", 4),
    ]
)


def tuning() -> Tuning:
    return Tuning(Values(Limits(64, 128, 50, max_queued=100), TimeLimits(), MAX_ROWS))


def told(tuned: Tuning, settings: dict[str, int | float]) -> Reply:
    [(origin, reply)] = tuned.set(3, SetState(call="c", settings=settings), 0)
    assert origin == 3
    assert isinstance(reply, Reply)
    return reply


@given(GOOD)
def test_what_was_set_is_what_is_shown_and_all_else_stays(given_settings: dict[str, int | float]) -> None:
    tuned = tuning()
    before = tuned.shown()
    reply = told(tuned, given_settings)
    assert reply.success
    assert reply.state == {"settings": tuned.shown()}
    assert tuned.shown() == pytest.approx(before | given_settings, abs=1e-9)  # times are kept in nanoseconds


@given(GOOD, BAD)
def test_one_bad_value_changes_nothing_and_is_named(
    given_settings: dict[str, int | float], bad: tuple[str, float]
) -> None:
    tuned = tuning()
    before = tuned.values
    reply = told(tuned, {**given_settings, bad[0]: bad[1]})
    assert not reply.success
    assert reply.message.startswith(bad[0])
    assert tuned.values == before


ROWS: dict[str, int | float] = {"pp_max_micro_batch_size": 1}
LOAD: list[Command] = [ask(f"r{i}", [1, 2, 3, i], 12) for i in range(4)]


def test_fewer_rows_a_step_shape_every_plan_from_then_on_and_change_no_token() -> None:
    plain = play({0: LOAD})
    tuned = play({0: LOAD, 8: [SetState(call="s", settings=ROWS), GetState(call="g")]})
    state = {reply.call: reply.state for reply in tuned.replies()}
    assert state["g"]["settings"] == state["s"]["settings"]
    plans = [event for event in tuned.events if isinstance(event, Plan)]
    rows = [len(plan.decode) + len(plan.pieces) for plan in plans]
    assert max(rows[:8]) > 1
    assert set(rows[8:]) <= {0, 1}
    for request in range(4):
        rid = f"r{request}"
        assert tokens(tuned.of(rid)) == tokens(plain.of(rid))


def tokens(answers: list[Delta | Finished | Rejected]) -> list[int]:
    deltas = [answer.delta if isinstance(answer, Finished) else answer for answer in answers]
    return [token for delta in deltas if isinstance(delta, Delta) for token in delta.tokens]


def test_a_shorter_queue_refuses_what_comes_after_and_keeps_what_waits() -> None:
    settings: dict[str, int | float] = {"max_queued_requests": 1}
    later: list[Command] = [SetState(call="s", settings=settings), ask("late", [1, 2], 3)]
    played = play({0: [*LOAD, *(ask(f"w{i}", [1, i], 3) for i in range(3))], 6: later})
    [refused] = played.of("late")
    assert isinstance(refused, Rejected)
    assert refused.code == "queue_full"
    assert all(played.end(f"w{i}").output_tokens == 3 for i in range(3))


def test_a_recording_with_a_change_in_it_replays(tmp_path: Path) -> None:
    path = tmp_path / "run"
    recorder = Recorder(path.open("wb"), SHAPES, SETTINGS, 2**20, None)
    script = {0: [(0, one) for one in LOAD], 8: [(0, SetState(call="s", settings=ROWS))], 900: [(0, Shutdown())]}
    run(assemble(ScriptedPort(script), KVEchoRunner(SHAPES), SETTINGS, (recorder,)), SETTINGS.depth)
    recorder.close()
    assert replay(path) > 8
