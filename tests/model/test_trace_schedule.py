"""Which steps a profile traces: against the document's rules, for any options and any steps."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.interface import ProfileOptions, ProfileRefused
from model.trace_schedule import MAX_STEPS, Tracing, trace_schedule

PLAIN = ProfileOptions(
    output_dir=None,
    start_step=None,
    num_steps=None,
    activities=("CPU", "GPU"),
    with_stack=False,
    record_shapes=False,
    profile_by_stage=False,
    profile_stages=("prefill", "decode"),
    profile_id=None,
    wait_steps=0,
    warmup_steps=0,
    active_steps=None,
    repeat=1,
)


def options(**changes: object) -> ProfileOptions:
    return dataclasses.replace(PLAIN, **changes)  # pyright: ignore[reportArgumentType]


def traces(asked: ProfileOptions, forward_count: int, stages: list[str]) -> tuple[list[list[int]], list[int], int]:
    """Steps of every trace, steps of warm-ups, and the step after which nothing was left to do."""
    schedule = trace_schedule(asked, forward_count)
    saved: list[list[int]] = []
    warm: list[int] = []
    current: list[int] = []
    done = 0
    for step, stage in enumerate(stages, forward_count + 1):
        on = schedule.before(step, stage)
        if on is Tracing.WARM_UP:
            warm.append(step)
        elif on is Tracing.ON:
            current.append(step)
            if schedule.after(step, stage):
                saved.append(current)
                current = []
        if schedule.done(step) and not done:
            done = step
    return saved, warm, done


@given(st.integers(0, 50), st.integers(0, 80) | st.none(), st.integers(1, 20))
def test_a_profile_traces_so_many_steps_from_the_start_step_or_from_the_next(
    count: int, start: int | None, steps: int
) -> None:
    # document: M-10
    saved, warm, done = traces(options(start_step=start, num_steps=steps), count, ["decode"] * 150)
    first = max(start or 0, count + 1)
    assert saved == [list(range(first, first + steps))]
    assert (warm, done) == ([], first + steps - 1)


@given(st.integers(0, 9), st.integers(0, 4), st.integers(0, 4), st.integers(1, 4), st.integers(1, 4))
def test_a_schedule_waits_warms_up_traces_and_repeats(
    count: int, wait: int, warm_up: int, active: int, repeat: int
) -> None:
    # document: O-32
    asked = options(wait_steps=wait, warmup_steps=warm_up, active_steps=active, repeat=repeat)
    saved, warm, done = traces(asked, count, ["prefill"] * 60)
    cycle, first = wait + warm_up + active, count + 1
    begins = [first + n * cycle for n in range(repeat)]
    assert warm == [step for begin in begins for step in range(begin + wait, begin + wait + warm_up)]
    assert saved == [list(range(begin + wait + warm_up, begin + cycle)) for begin in begins]
    assert done == begins[-1] + cycle - 1


@given(
    st.lists(st.sampled_from(["prefill", "decode"]), max_size=60),
    st.integers(1, 5),
    st.sampled_from([("prefill", "decode"), ("decode",), ("prefill",)]),
)
def test_by_stage_each_stage_gets_its_own_trace_with_so_many_of_its_batches(
    stages: list[str], steps: int, wanted: tuple[str, ...]
) -> None:
    # documents: M-10, O-32
    saved, _, done = traces(options(profile_by_stage=True, num_steps=steps, profile_stages=wanted), 0, stages)
    kinds = [stages[trace[-1] - 1] for trace in saved]
    assert len(set(kinds)) == len(kinds)
    assert set(kinds) <= set(wanted)
    for trace, kind in zip(saved, kinds, strict=True):
        assert stages[trace[0] - 1] == kind
        assert [stages[step - 1] for step in trace].count(kind) == steps
    assert bool(done) == (len(saved) == len(wanted))


def test_until_stopped_is_bounded() -> None:
    # document: M-10
    schedule = trace_schedule(options(), 5)
    assert schedule.before(6, "decode") is Tracing.ON
    assert not schedule.done(5 + MAX_STEPS - 1)
    assert schedule.done(5 + MAX_STEPS)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 3, "active_steps": 3},
        {"num_steps": MAX_STEPS + 1},
        {"repeat": 2},
        {"profile_by_stage": True},
        {"profile_by_stage": True, "num_steps": 3, "warmup_steps": 1},
    ],
)
def test_options_that_contradict_each_other_are_refused(changes: dict[str, object]) -> None:
    # document: M-10
    with pytest.raises(ProfileRefused):
        trace_schedule(options(**changes), 0)
