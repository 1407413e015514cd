"""Which waiting requests are admitted, and with what first work: the budgets of SGLang's prefill adder.

The queue comes in order. The first request that does not fit holds back all behind it, unless requests may be passed
over; then each may be, a limited number of times in its life, and at the limit it holds back the rest. A request whose
next pages another one computes in this very step waits for them instead of computing them too; it holds nobody back.
"""

from bisect import insort
from dataclasses import dataclass, field

import numpy as np

from scheduler.commands import Reason
from scheduler.draft import Blocked, Draft, Passed, pages_for, round_up
from scheduler.estimate import Course, course, expected_tokens, lasts, new_tokens, unmet_tokens
from scheduler.preemption import Shortfall
from scheduler.radix_cache import Hit
from scheduler.request import Request

LOOK_AHEAD = 32
"""Requests of the queue that are tried in vain at most before a plan gives up."""


@dataclass(slots=True)
class _Account:
    """What admission has promised of the pool, as an estimate. Made when the first request is tried."""

    draft: Draft
    reserved: float = 0.0
    """Tokens that running and admitted requests are expected to take still."""
    unmet: int = 0
    """Those of them that their known tokens take."""
    courses: list[Course] = field(default_factory=list[Course])
    """Ascending; of requests that run and are admitted. Kept only without prefix cache."""

    @classmethod
    def opened(cls, draft: Draft) -> "_Account":
        view = draft.view
        account = cls(draft, expected_tokens(view.running, view.token_ratio))
        if not view.budgets.reuse:
            account.unmet = unmet_tokens(view.running)
            account.courses = sorted(course(r, view.token_ratio) for r in view.running if r.finish is None)
        return account

    def fits(self, request: Request, hit: Hit) -> bool:
        """Whether the pool is expected to hold it beside the others."""
        view, size = self.draft.view, self.draft.view.shapes.page_size
        if not (view.running or self.draft.admit):
            return True  # Arrivals were cut to what the pool holds, so it fits alone.
        if not view.budgets.reuse and request.params.ignore_eos:
            left = request.length - hit.pages * size
            free = view.available[0] * size - self.unmet - round_up(left, size)
            courses = list(self.courses)
            insort(courses, course(request, view.token_ratio))
            return lasts(courses, len(courses), free)
        return self.excess(request, hit) < 0

    def excess(self, request: Request, hit: Hit) -> float:
        """Tokens by which the pool is too small for it beside the others; below 0 it fits."""
        view, size = self.draft.view, self.draft.view.shapes.page_size
        left = request.length - hit.pages * size
        return left + new_tokens(request) + size + self.reserved - (view.available[0] - hit.unlocked) * size

    def charge(self, request: Request, hit: Hit) -> None:
        """It was admitted."""
        view, size = self.draft.view, self.draft.view.shapes.page_size
        left = round_up(request.length - hit.pages * size, size)
        self.reserved += left + new_tokens(request) + size + hit.unlocked * size
        if not view.budgets.reuse:
            self.unmet += left + size
            insort(self.courses, course(request, view.token_ratio))


def admit(draft: Draft) -> None:
    """Admit what fits, in order."""
    view = draft.view
    account: _Account | None = None
    skipped: list[tuple[Request, int]] = []
    leeway = tried = 0
    for request in view.waiting:
        if len(draft.admit) >= view.free_slots:
            draft.blocked.append(Blocked(request, Reason.NO_SLOT))
            _note_shortfall(draft, account, request)
            break
        account = account or _Account.opened(draft)
        reason = _try(draft, account, request)
        if reason is None:
            leeway -= 1
            if skipped and leeway <= 0:
                break
            continue
        draft.blocked.append(Blocked(request, reason))
        tried += 1
        if reason is Reason.NO_PAGES:
            _note_shortfall(draft, account, request)
        if reason is Reason.NO_PAGES:
            allowed = view.budgets.max_passed_over - request.passed_over
            leeway = min(leeway, allowed) if skipped else allowed
            skipped.append((request, len(draft.admit)))
        elif reason is not Reason.PREFIX_PENDING:
            break
        if tried >= LOOK_AHEAD or (skipped and leeway <= 0):
            break
    admitted = len(draft.admit)
    draft.passed += [Passed(request, admitted - before) for request, before in skipped if before < admitted]


def _note_shortfall(draft: Draft, account: _Account | None, request: Request) -> None:
    """Say what the first of the queue lacks, for whoever may give way to it."""
    if draft.view.preemption is None or draft.admit or draft.newcomer is not None:
        return
    account = account or _Account.opened(draft)
    draft.newcomer = request
    tokens = account.excess(request, draft.view.peek(request)) + 1  # It must stay below what there is.
    draft.short = Shortfall(1 if draft.view.free_slots <= 0 else 0, tokens)


def _try(draft: Draft, account: _Account, request: Request) -> Reason | None:
    """Admit a request, or say why not."""
    hit = draft.view.peek(request)
    if _prefix_pending(draft, request, hit):
        return Reason.PREFIX_PENDING
    reason = _start(draft, request, hit) if account.fits(request, hit) else Reason.NO_PAGES
    if reason is None:
        account.charge(request, hit)
    return reason


def _prefix_pending(draft: Draft, request: Request, hit: Hit) -> bool:
    """Whether a piece of this step computes the next pages of this request, so many that waiting for them pays.

    SGLang's in-batch prefix caching, for every order: pages are shared from the plan after this one on, so that a
    prefix is computed once. Whoever is waited for makes progress in this very plan, so nobody waits forever.
    """
    budgets, size = draft.view.budgets, draft.view.shapes.page_size
    if not (budgets.reuse and budgets.defer_shared_tokens):
        return False
    cached = hit.pages * size
    end = cached + round_up(budgets.defer_shared_tokens, size)
    if end > request.match_end:
        return False
    return any(
        piece.start < cached + size
        and cached < piece.start + piece.length
        and end <= piece.request.piece_end
        and piece.request.namespace == request.namespace
        and np.array_equal(piece.request.tokens(0, end), request.tokens(0, end))
        for piece in draft.pieces
    )


def _start(draft: Draft, request: Request, hit: Hit) -> Reason | None:
    """Admit a request with its first work, or say why not."""
    size = draft.view.shapes.page_size
    start, spare = hit.pages * size, draft.spare - hit.unlocked
    if request.scoring:
        draft.admit.append(request)  # Scored in steps of its own.
        draft.spare = spare
        return None
    if request.length - start == 1 and request.max_new:
        reason = draft.decode_room(spare)
        if reason:
            return reason
        draft.decode.append(request)
        draft.spare = spare - 1
    else:
        length, reason = draft.piece_length(request.length - start)
        length = min(length, spare * size)
        if reason or length <= 0:
            return reason or Reason.NO_PAGES
        draft.add_piece(request, start, length)
        draft.spare = spare - pages_for(length, size)
    draft.admit.append(request)
    return None
