"""Charges the time of requests to reasons as plans name them."""

from scheduler.commands import Reason
from scheduler.planner import Plan
from scheduler.request import Request


class Charges:
    """Remembers who is held back, and by a plan charges those whose reason has changed, and nobody else."""

    def __init__(self) -> None:
        self._held: dict[int, Request] = {}
        """Requests that wait for a reason other than the queue's order."""

    def charge(self, plan: Plan, fresh: list[Request], paused: bool, now_ns: int) -> None:
        """Of those held back now, those no longer, and those just arrived, which are taken out of ``fresh``."""
        if not (plan.blocked or plan.drain or self._held or fresh):
            return
        held = {request.number: request for request, _ in plan.blocked}
        held.update((request.number, request) for request in plan.drain)
        for request, reason in plan.blocked:
            held_back(request, reason, now_ns)
        for request in plan.drain:
            held_back(request, Reason.DRAINING, now_ns)
        for request in [*self._held.values(), *fresh]:
            if request.number not in held and request not in plan.retract and request not in plan.preempt:
                held_back(request, Reason.PAUSED if paused else request.work, now_ns)
        self._held = held
        fresh.clear()


def held_back(request: Request, reason: Reason, now_ns: int) -> None:
    """Charge a request's time to a new reason, unless it has ended."""
    if request.finish is None:
        request.waits.change(reason, now_ns)
