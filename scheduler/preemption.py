"""Which running requests give way to a more urgent one: a pure function.

The rule is SGLang's: the least urgent first and of equals the youngest, each less urgent than the newcomer by more than
a threshold, and nobody unless they free enough together. Ours is the bound: a request gives way a limited number of
times, so that even under a stream of more urgent ones it comes to its end.
"""

from collections.abc import Callable, Sequence
from operator import sub
from typing import NamedTuple

from scheduler.request import Request


class Preemption(NamedTuple):
    """When a running request gives way."""

    threshold: int
    """It is less urgent by more than this."""
    limit: int
    """It has given way fewer times than this."""


class Shortfall(NamedTuple):
    """What keeps a request out; zero or less keeps nobody out."""

    slots: int
    tokens: tuple[float, ...]
    """Of the pool, by page group, by the estimate that admission uses."""


def victims(
    newcomer: Request,
    running: Sequence[Request],
    short: Shortfall,
    freed: Callable[[Request], tuple[float, ...]],
    rule: Preemption,
) -> tuple[Request, ...]:
    """Running requests that give way to ``newcomer``; none if that would not let it in.

    Args:
        newcomer: the first of the queue, which is held back.
        running: everybody that runs.
        short: what it lacks.
        freed: tokens of the pool, by page group, that are free again, or no longer spoken for, once this request has
            gone.
        rule: who may be asked.
    """
    if any(request.finish is not None for request in running):
        return ()  # Somebody leaves as soon as its rows are read; see then.
    below = newcomer.urgency - rule.threshold
    willing = [r for r in running if r.urgency < below and r.preemptions < rule.limit]
    willing.sort(key=lambda request: (request.urgency, -request.number))
    slots, tokens = short
    chosen: list[Request] = []
    for request in willing:
        if slots <= 0 and max(tokens) <= 0:
            break
        chosen.append(request)
        slots -= 1
        tokens = tuple(map(sub, tokens, freed(request)))
    alone = len(chosen) == len(running)  # Whoever is alone fits: arrivals were cut to what the pool holds.
    return tuple(chosen) if slots <= 0 and (max(tokens) <= 0 or alone) else ()
