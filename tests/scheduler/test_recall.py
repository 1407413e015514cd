"""A request that has not run is given back on demand, for another engine to take; one that has run stays."""

from scheduler.commands import Command, Finished, Recall, Rejected, StepStats
from tests.scheduler.build import ask, play

# document: O-29

MANY: list[Command] = [ask(f"r{number}", [number + 1, 2, 3], 6) for number in range(6)]
"""Four run at once."""


def test_what_waits_is_given_back_once_and_what_runs_goes_on() -> None:
    alone = play({0: MANY[:4]})
    recalls: list[Command] = [Recall(rid=f"r{number}") for number in (0, 4, 4)]
    played = play({0: MANY, 3: recalls})
    [back] = played.of("r4")
    assert isinstance(back, Rejected)
    assert (back.status, back.code) == (503, "recalled")
    assert back.times is not None
    assert isinstance(played.of("r5")[-1], Finished)
    for rid in ("r0", "r1", "r2", "r3"):
        assert played.end(rid).delta == alone.end(rid).delta
    last = [event for event in played.events if isinstance(event, StepStats)][-1]
    assert (last.num_queued, last.finished) == (0, 5)


def test_an_id_that_is_not_open_and_a_group_are_no_reason_for_anything() -> None:
    played = play({0: MANY, 2: [Recall(rid="unknown")]})
    assert all(isinstance(played.of(f"r{number}")[-1], Finished) for number in range(6))
