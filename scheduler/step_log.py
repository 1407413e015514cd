"""The log lines of the engine's steps: one for every prefill step, one for so many decode steps."""

import logging

from scheduler.commands import StepStats
from scheduler.observe import Committed, Event
from scheduler.planner import Plan

logger = logging.getLogger(__name__)


class StepLog:
    """An ``Observer`` that logs at ``info`` (documents: M-4, M-5).

    A prefill line says how many requests have a piece in the step and how many of its tokens are theirs, beside
    what the decode rows leave of the step's budget; queue and running requests are those after the step.

    Args:
        interval: decode steps from one decode line to the next; there is none when nothing runs any more.
        token_budget: tokens that a step may have.
    """

    def __init__(self, interval: int, token_budget: int) -> None:
        self._interval = interval
        self._token_budget = token_budget
        self._decoded = 0
        self._plan: Plan | None = None
        """Of the step whose figures come next."""

    def observe(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Committed):
            self._plan = event.plan
        elif isinstance(event, StepStats) and not event.family:
            self._decoded = 0  # a rest begins anew (document: O-22)
        elif isinstance(event, StepStats) and self._plan is not None:
            plan, self._plan = self._plan, None
            if plan.pieces:
                logger.info("%s", prefill_line(plan, event, self._token_budget))
            elif plan.decode:
                self._decoded += 1
                if self._decoded % self._interval == 0 and event.num_running:
                    logger.info("%s", decode_line(plan, event))


def prefill_line(plan: Plan, stats: StepStats, token_budget: int) -> str:
    """What a step with prompt pieces did."""
    new_tokens = sum(piece.length for piece in plan.pieces)
    left = token_budget - len(plan.decode)
    ratio = new_tokens / left if left > 0 else 0.0
    running = f", #running_reqs: {stats.num_running}" if stats.num_running else ""
    cached = sum([request.cached_tokens for request in plan.admit if not request.retractions])
    return (
        f"prefill: #queue_req: {stats.num_queued}, #can_run_req: {len(plan.pieces)}, "
        f"#new_token: {new_tokens}, new_token_ratio: {ratio:.3f}{running}, #cached_token: {cached}, "
        f"input_throughput: {stats.input_throughput:.3f} token/s, {_bucket(plan, new_tokens + len(plan.decode))}"
    )


def decode_line(plan: Plan, stats: StepStats) -> str:
    """How decoding goes on; the bucket in which the step ran, and the rows of it that were padding."""
    usage = min(1.0, stats.tokens_used / stats.tokens_total) if stats.tokens_total else 0.0
    window = "" if stats.swa_token_usage is None else f"swa_token_usage: {stats.swa_token_usage:.3f}, "
    grammar, accepted = stats.num_grammar_queue, stats.spec_accept_length
    later = "" if grammar is None else f"#grammar_queue_req: {grammar}, "
    later += f"spec_accept_length: {accepted:.3f}, " if accepted else ""
    return (
        f"decode: #running_req: {stats.num_running}, #queue_req: {stats.num_queued}, #token: {stats.tokens_used}, "
        f"token_usage: {usage:.3f}, {window}gen_throughput: {stats.gen_throughput:.3f} token/s, "
        f"{later}{_bucket(plan, len(plan.decode))}"
    )


def _bucket(plan: Plan, tokens: int) -> str:
    return f"bucket: {plan.size}, padding: {plan.size - tokens}"


def describe(plan: Plan) -> str:
    """A step in words, for whoever must find out why it failed."""
    rows = [request.rid for request in plan.decode]
    rows += [f"{piece.request.rid}[{piece.start}:{piece.start + piece.length}]" for piece in plan.pieces]
    return f"in a {plan.family.value} step of size {plan.size} with {len(rows)} rows: {' '.join(rows)}"
