"""Engines that die and are started again: their health, their figures, and how often that may be."""

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from scheduler.commands import Progress, StepTimes
from serving.engines import MAX_RESTARTS, RESTART_WINDOW_S, may_restart
from serving.metrics import Metrics
from serving.vitals import STUCK_AFTER_S, Vitals
from tests.serving.process.figures import ready, step_stats

LABELS = {"model_name": "m", "engine_type": "unified"}


def value(metrics: Metrics, name: str, replica: int) -> float | None:
    """Of one replica; None where it has no such series."""
    lines = [line for line in metrics.render().decode().splitlines() if line.startswith(f"{name}{{")]
    found = [float(line.rpartition(" ")[2]) for line in lines if f'dp_rank="{replica}"' in line]
    assert len(found) <= 1, "a series comes once"
    return found[0] if found else None


@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=5), st.booleans())
def test_what_a_replica_counts_adds_up_over_its_lives_and_never_falls(lives: list[list[int]], asked: bool) -> None:
    # document: M-7
    metrics, truth, seen = Metrics(LABELS, replicas=2), 0, [0.0]
    for life in lives:
        metrics.take(structs.replace(ready(), replica=1))
        for total in sorted(life):
            metrics.take(step_stats(replica=1, retractions=total))
            if asked:
                seen.append(value(metrics, "radjax_num_retracted_requests_total", 1) or 0.0)
        truth += max(life, default=0)
        metrics.gone(1)
    seen.append(value(metrics, "radjax_num_retracted_requests_total", 1) or 0.0)
    assert seen == sorted(seen)
    assert seen[-1] == truth


def test_a_replica_that_is_out_has_no_gauge_until_it_is_ready_again_and_the_other_keeps_its_own() -> None:
    # document: P-5
    metrics = Metrics(LABELS, replicas=2)
    for replica in range(2):
        metrics.take(structs.replace(ready(), replica=replica))
        metrics.take(step_stats(replica=replica, num_running=3 + replica))
    metrics.gone(1)
    metrics.take(step_stats(replica=1, num_running=9))  # said before it died
    gauges = ("radjax_num_running_reqs", "radjax_num_pages", "radjax_serving")
    assert [value(metrics, name, 0) for name in gauges] == [3, 256, 1]
    assert [value(metrics, name, 1) for name in gauges] == [None, None, 0]
    metrics.take(structs.replace(ready(), replica=1))
    assert [value(metrics, name, 1) for name in gauges] == [0, 256, 1]


def test_steps_are_told_apart_by_replica() -> None:
    # document: M-14
    metrics = Metrics(LABELS, replicas=2)
    phases = dict.fromkeys(("receive_s", "plan_s", "launch_s", "commit_s", "emit_s"), 0.0)
    for replica, steps in ((0, 2), (1, 5)):
        for _ in range(steps):
            metrics.take(StepTimes(replica=replica, family="decode", size=8, step_s=0.1, **phases))
    assert [value(metrics, "radjax_step_duration_seconds_count", replica) for replica in range(2)] == [2, 5]


def vitals() -> Vitals:
    """Of two engines that serve."""
    found = Vitals(0.0, 2)
    found.ready(0, 0.0)
    assert found.health.state == "starting"
    found.ready(1, 0.0)
    assert found.health.state == "ready"
    return found


def test_a_service_is_ready_once_all_engines_were_and_as_long_as_one_is() -> None:
    found = vitals()
    found.replicas[0].die("killed")
    assert (found.health.state, found.serving) == ("ready", (1,))
    assert [(one.state, one.reason, one.restarts) for one in found.health.replicas] == [
        ("dead", "killed", 0),
        ("ready", "", 0),
    ]
    found.replicas[0].begin(1.0)
    found.progress(Progress(stage="weights", done=1, total=2))
    assert (found.health.state, found.health.replicas[0].reason) == ("ready", "killed")
    found.replicas[1].die("killed")
    assert (found.health.state, found.health.stage) == ("starting", "weights")
    found.ready(0, 2.0)
    assert (found.health.state, found.health.replicas[0].restarts) == ("ready", 1)


def test_an_engine_that_stands_still_is_found_beside_one_that_moves() -> None:
    found, late = vitals(), STUCK_AFTER_S + 1
    found.beat(b"frontend-0", [1, 1], 0.0)
    found.step(step_stats(replica=0, num_running=1), late)
    found.check(late)
    assert [one.state for one in found.health.replicas] == ["ready", "stuck"]
    assert found.health.state == "ready"
    found.check(2 * late)
    assert (found.health.state, found.health.reason != "") == ("stuck", True)
    found.step(step_stats(replica=1, num_running=1), 2 * late)
    assert [one.state for one in found.health.replicas] == ["stuck", "ready"]


@given(st.lists(st.floats(0, 3000), max_size=12).map(sorted))
def test_a_replica_is_started_again_three_times_within_ten_minutes_and_no_more(deaths: list[float]) -> None:
    restarts: list[float] = []
    for death in deaths:
        recent = [restart for restart in restarts if death - restart < RESTART_WINDOW_S]
        assert may_restart(restarts, death) == (len(recent) < MAX_RESTARTS)
        if may_restart(restarts, death):
            restarts.append(death)
    for start in restarts:
        assert sum(start <= restart < start + RESTART_WINDOW_S for restart in restarts) <= MAX_RESTARTS
