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
from scheduler.estimate import (
    Course,
    course,
    expected_tokens,
    expected_window_tokens,
    lasts,
    new_tokens,
    unmet_tokens,
    window_tokens,
)
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
    window_reserved: int = 0
    """As ``reserved``, of the window group where there is one."""

    @classmethod
    def opened(cls, draft: Draft) -> "_Account":
        view = draft.view
        account = cls(draft, expected_tokens(view.running, view.token_ratio))
        if view.budgets.window:
            size = view.shapes.page_size
            account.window_reserved = expected_window_tokens(view.running, view.budgets.window, size)
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
            return lasts(courses, len(courses), free) and max(self.excess(request, hit)[1:], default=-1) < 0
        return max(self.excess(request, hit)) < 0

    def excess(self, request: Request, hit: Hit) -> tuple[float, ...]:
        """Tokens by which the pool is too small for it beside the others, by group; below 0 it fits."""
        view, size = self.draft.view, self.draft.view.shapes.page_size
        left = request.length - hit.pages * size
        full = left + new_tokens(request) + size + self.reserved - (view.available[0] - hit.unlocked) * size
        if not view.budgets.window:
            return (full,)
        free = (view.available[1] - hit.window_unlocked) * size
        return full, self._window_need(request, left) + self.window_reserved - free

    def charge(self, request: Request, hit: Hit) -> None:
        """It was admitted."""
        view, size = self.draft.view, self.draft.view.shapes.page_size
        left = round_up(request.length - hit.pages * size, size)
        self.reserved += left + new_tokens(request) + size + hit.unlocked * size
        if view.budgets.window:
            self.window_reserved += self._window_need(request, left) + hit.window_unlocked * size
        if not view.budgets.reuse:
            self.unmet += left + size
            insort(self.courses, course(request, view.token_ratio))

    def _window_need(self, request: Request, left: int) -> int:
        """Tokens of the window group that it takes; its chunks are cut smaller where even all of the group is less."""
        budgets, shapes = self.draft.view.budgets, self.draft.view.shapes
        need = window_tokens(request, left, budgets.window, shapes.mixed_tokens[-1]) + shapes.page_size
        if need >= budgets.window_pages * shapes.page_size:
            need = window_tokens(request, left, budgets.window, 0) + shapes.page_size
        return need


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
        elif reason not in (Reason.PREFIX_PENDING, Reason.LOADING):
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
    excess = account.excess(request, draft.view.peek(request))
    tokens = tuple([short + 1 for short in excess])  # It must stay below what there is.
    draft.short = Shortfall(1 if draft.view.free_slots <= 0 else 0, tokens)


def _try(draft: Draft, account: _Account, request: Request) -> Reason | None:
    """Admit a request, or say why not."""
    if request.loading:
        return Reason.LOADING
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
    cached = hit.reach * size
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
    start, spare = hit.reach * size, draft.spare_after(hit)
    least = min(spare)
    if request.scoring:
        if least < 0:
            return Reason.NO_PAGES
        draft.admit.append(request)  # Scored in steps of its own.
        draft.spare = spare
        return None
    if request.length - start == 1 and request.max_new:
        reason = draft.decode_room(least)
        if reason:
            return reason
        draft.decode.append(request)
        draft.spare = spare
        draft.promise(1)
    else:
        length, reason = draft.piece_length(request.length - start)
        length = min(length, least * size)
        if reason or length <= 0:
            return reason or Reason.NO_PAGES
        draft.add_piece(request, start, length)
        draft.spare = spare
        draft.promise(pages_for(length, size))
    draft.admit.append(request)
    return None
