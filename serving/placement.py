"""To which replica a request goes, and which requests move: decisions alone, as pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

from configs.schema import Placement


@dataclass(slots=True, frozen=True)
class Standing:
    """One replica as a request finds it."""

    serving: bool
    requests: int = 0
    """Running, waiting, and on their way there."""
    tokens: int = 0
    """Of pages in use and of prompts that wait or are on their way."""
    matched: int = 0
    """Pages of the request's prompt that went there before."""
    waiting: int = 0
    """Of the requests, those that do not run."""


def place(standings: Sequence[Standing], placement: Placement, turn: int, slack: int) -> int | None:
    """The replica for a request; None when none serves.

    Args:
        standings: of all replicas, in order.
        placement: the rule; among equals it is the next one from ``turn`` on.
        turn: requests placed before this one.
        slack: requests by which the one with the longest prefix may be ahead of the least busy.
    """
    live = [index for index, standing in enumerate(standings) if standing.serving]
    if not live:
        return None
    first = turn % len(live)
    serving = live[first:] + live[:first]
    match placement:
        case "round_robin":
            return serving[0]
        case "fewest_tokens":
            return min(serving, key=lambda index: (standings[index].tokens, standings[index].requests))
        case "shortest_queue":
            return _least_busy(standings, serving)
        case "prefix" | "auto":
            return _with_prefix(standings, serving, slack)


def shift(standings: Sequence[Standing], slack: int) -> tuple[int, int] | None:
    """From which replica waiting requests are to leave, and how many, so that one where none wait has work too.

    Half the difference moves, and nothing unless it is larger than ``slack``. (Document: O-29.)
    """
    serving = [index for index, standing in enumerate(standings) if standing.serving]
    idle = [index for index in serving if not standings[index].waiting]
    if not idle:
        return None
    longest = max(serving, key=lambda index: standings[index].waiting)
    ahead = standings[longest].requests - standings[_least_busy(standings, idle)].requests
    count = min(standings[longest].waiting, ahead // 2)
    return (longest, count) if ahead > slack and count > 0 else None


def _least_busy(standings: Sequence[Standing], serving: Sequence[int]) -> int:
    return min(serving, key=lambda index: (standings[index].requests, standings[index].tokens))


def _with_prefix(standings: Sequence[Standing], serving: Sequence[int], slack: int) -> int:
    idlest = _least_busy(standings, serving)
    longest = max(standings[index].matched for index in serving)
    if not longest:
        return idlest
    best = _least_busy(standings, [index for index in serving if standings[index].matched == longest])
    return best if standings[best].requests <= standings[idlest].requests + slack else idlest
