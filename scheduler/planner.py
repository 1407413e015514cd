"""What the next step computes: a pure function of a view of the scheduler.

A request's work is some number of its next tokens. Exactly one token that samples is a decode row,
whether it ends a prompt or a generation; anything else is a prompt piece. Decode rows come first,
then pieces of running prompts, then admissions, all in one step; nothing here is modified.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from model.interface import Family, Shapes
from scheduler.commands import Reason
from scheduler.kv_cache import Lease
from scheduler.radix_cache import Hit
from scheduler.request import Request

CLIP_NEW_TOKENS = 4096
"""New tokens that the admission estimate assumes of one request at most (SGLang's bound)."""
MAX_PADDING = 0.25
"""Share of a bucket that may be padding before the last piece is cut to a smaller one."""


class Blocked(NamedTuple):
    """A request that is left out, and why."""

    request: Request
    reason: Reason


class Piece(NamedTuple):
    """The tokens ``[start, start + length)`` of a request."""

    request: Request
    start: int
    length: int
    samples: bool


@dataclass(slots=True, frozen=True)
class View:
    """All that a plan depends on."""

    running: Sequence[Request]
    """In order of admission."""
    waiting: Iterable[Request]
    """In the order in which they are to be admitted."""
    free_slots: int
    available: tuple[int, ...]
    """Pages that are free or evictable, by group."""
    peek: Callable[[Request], Hit]
    reclaimable: Callable[[Lease], int]
    shapes: Shapes
    max_rows: int
    """Rows that a plan may hold."""
    token_ratio: float
    """Share of its remaining output that a running request is assumed to need."""
    last_family: Family | None
    """Family of the step launched before."""


@dataclass(slots=True, frozen=True)
class Plan:
    """One decision. A plan with ``drain`` does nothing but wait for the rows of those requests."""

    family: Family = Family.DECODE
    size: int = 0
    """R of a decode program, T of the others; 0 without work."""
    decode: tuple[Request, ...] = ()
    pieces: tuple[Piece, ...] = ()
    """Of a score plan exactly one."""
    admit: tuple[Request, ...] = ()
    """Taken from the queue; some get no work yet."""
    retract: tuple[Request, ...] = ()
    drain: tuple[Request, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    """Running requests left out, then the first request not admitted; all behind that one are queued behind it."""

    @property
    def idle(self) -> bool:
        """Whether it changes nothing."""
        return not (self.size or self.admit or self.retract or self.drain)

    def canonical(self) -> bytes:
        """The decision as bytes, requests by their number: equal exactly when plans are."""
        return msgspec.msgpack.encode(
            (
                self.family,
                self.size,
                [request.number for request in self.decode],
                [(piece.request.number, piece.start, piece.length, piece.samples) for piece in self.pieces],
                [request.number for request in self.admit],
                [request.number for request in self.retract],
                [request.number for request in self.drain],
                [(request.number, reason) for request, reason in self.blocked],
            )
        )


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    view: View
    spare: int
    """Pages not yet promised."""
    decode: list[Request] = field(default_factory=list[Request])
    fresh: int = 0
    """Decode rows that need a page."""
    prefill: list[Request] = field(default_factory=list[Request])
    scoring: list[Request] = field(default_factory=list[Request])
    pieces: list[Piece] = field(default_factory=list[Piece])
    piece_tokens: int = 0
    """Of the pieces, each rounded up to the tile."""
    admit: list[Request] = field(default_factory=list[Request])
    blocked: list[Blocked] = field(default_factory=list[Blocked])

    @property
    def rows(self) -> int:
        return len(self.decode) + len(self.pieces)

    def room(self, decode_rows: int) -> int:
        """Tokens that a further piece may have."""
        shapes = self.view.shapes
        return shapes.mixed_tokens[-1] - _round_up(decode_rows, shapes.tile) - self.piece_tokens

    def plan(self, family: Family, size: int) -> Plan:
        return Plan(
            family,
            size,
            tuple(self.decode),
            tuple(self.pieces),
            admit=tuple(self.admit),
            blocked=tuple(self.blocked),
        )


def plan(view: View) -> Plan:
    """Decide what happens next."""
    draft = _sort_running(view)
    if draft.scoring and view.last_family is not Family.SCORE and (scored := _score(draft)):
        return scored
    if draft.fresh > draft.spare:
        return _make_room(draft)
    draft.spare -= draft.fresh
    for request in draft.prefill:
        if reason := _add_running_piece(draft, request):
            draft.blocked.append(Blocked(request, reason))
    _admit(draft)
    if draft.rows or draft.admit:
        return _close(draft)
    if draft.scoring:
        return _score(draft) or _break_deadlock(draft)
    if any(reason is Reason.NO_PAGES and request.lease is not None for request, reason in draft.blocked):
        return _break_deadlock(draft)
    return Plan(blocked=tuple(draft.blocked))


def _sort_running(view: View) -> _Draft:
    """Sort running requests by the kind of their next work. The only pass over all of them."""
    draft = _Draft(view, view.available[0])
    decode = draft.decode
    for request in view.running:
        computed = request.computed
        if computed >= request.goal or request.finish is not None:
            continue  # All of it is launched, or the rest is not wanted.
        if request.inflight > request.max_inflight:
            draft.blocked.append(Blocked(request, Reason.IN_FLIGHT))
        elif request.length - computed == 1 and request.max_new:
            decode.append(request)
        elif request.scoring and computed == request.next_score:
            draft.scoring.append(request)
        else:
            draft.prefill.append(request)
    limit = min(view.max_rows, view.shapes.decode_rows[-1])
    if len(decode) > limit:
        decode[:] = _by_turn(decode)
        draft.blocked += [Blocked(request, Reason.TOKEN_BUDGET) for request in decode[limit:]]
        del decode[limit:]
    draft.fresh = sum([request.computed >= _lease(request).capacity for request in decode])
    return draft


def _by_turn(rows: Sequence[Request]) -> list[Request]:
    """Least recently planned first; of equals those first that follow it, so that all take turns on a circle."""
    first = min(range(len(rows)), key=lambda index: rows[index].planned)
    return sorted([*rows[first:], *rows[:first]], key=lambda request: request.planned)


def _score(draft: _Draft) -> Plan | None:
    """A step of its own for the first request with positions to score, if it can have the pages."""
    view = draft.view
    request = draft.scoring[0]
    wanted = min(view.shapes.score_tokens, request.score_end - request.computed)
    length = min(wanted, _lease(request).capacity + draft.spare * view.shapes.page_size - request.computed)
    if length <= 0:
        return None
    piece = Piece(request, request.computed, length, False)
    return Plan(Family.SCORE, view.shapes.score_tokens, pieces=(piece,))


def _add_running_piece(draft: _Draft, request: Request) -> Reason | None:
    """Add as much of a running prompt as fits, or say why nothing does."""
    capacity, size = _lease(request).capacity, draft.view.shapes.page_size
    length, reason = _piece_length(draft, request.piece_end - request.computed)
    length = min(length, capacity + draft.spare * size - request.computed)
    if reason or length <= 0:
        return reason or Reason.NO_PAGES
    _add_piece(draft, request, request.computed, length)
    draft.spare -= max(0, _pages(request.computed + length - capacity, size))
    return None


def _piece_length(draft: _Draft, wanted: int) -> tuple[int, Reason | None]:
    """Tokens that a further piece can have of the step, before pages are looked at."""
    view = draft.view
    if len(draft.pieces) >= view.shapes.max_pieces:
        return 0, Reason.PIECE_LIMIT
    room = draft.room(len(draft.decode))
    if room <= 0 or draft.rows >= view.max_rows:
        return 0, Reason.TOKEN_BUDGET
    return min(wanted, room), None


def _add_piece(draft: _Draft, request: Request, start: int, length: int) -> None:
    samples = start + length == request.length and request.max_new > 0
    draft.pieces.append(Piece(request, start, length, samples))
    draft.piece_tokens += _round_up(length, draft.view.shapes.tile)


def _admit(draft: _Draft) -> None:
    """Admit in strict order: the first request that is held back holds back all behind it."""
    view = draft.view
    reserved: float | None = None
    for request in view.waiting:
        if len(draft.admit) >= view.free_slots:
            draft.blocked.append(Blocked(request, Reason.NO_SLOT))
            return
        if reserved is None:
            reserved = sum(_expected_tokens(running, view.token_ratio) for running in view.running)
        hit = view.peek(request)
        left = request.length - hit.pages * view.shapes.page_size
        cost = left + min(request.max_new - len(request.output), CLIP_NEW_TOKENS) + view.shapes.page_size
        lone = not (view.running or draft.admit)  # Arrivals were cut to what the pool holds, so it fits alone.
        if not lone and cost + reserved >= (view.available[0] - hit.unlocked) * view.shapes.page_size:
            reason = Reason.NO_PAGES
        else:
            reason = _admit_one(draft, request, hit)
        if reason:
            draft.blocked.append(Blocked(request, reason))
            return
        reserved += cost + hit.unlocked * view.shapes.page_size


def _admit_one(draft: _Draft, request: Request, hit: Hit) -> Reason | None:
    """Admit a request with its first work, or say why not."""
    size = draft.view.shapes.page_size
    start, spare = hit.pages * size, draft.spare - hit.unlocked
    if request.scoring:
        draft.admit.append(request)  # Scored in steps of its own.
        draft.spare = spare
        return None
    if request.length - start == 1 and request.max_new:
        reason = _decode_room(draft, spare)
        if reason:
            return reason
        draft.decode.append(request)
        draft.spare = spare - 1
    else:
        length, reason = _piece_length(draft, request.length - start)
        length = min(length, spare * size)
        if reason or length <= 0:
            return reason or Reason.NO_PAGES
        _add_piece(draft, request, start, length)
        draft.spare = spare - _pages(length, size)
    draft.admit.append(request)
    return None


def _decode_room(draft: _Draft, spare: int) -> Reason | None:
    """Why the step cannot take one more decode row."""
    view = draft.view
    count = len(draft.decode) + 1
    fits = draft.room(count) >= 0 if draft.pieces else count <= view.shapes.decode_rows[-1]
    if not fits or draft.rows >= view.max_rows:
        return Reason.TOKEN_BUDGET
    return Reason.NO_PAGES if spare < 1 else None


def _expected_tokens(request: Request, ratio: float) -> float:
    """Tokens of the pool that a running request will still take, by the new-token-ratio estimate."""
    if request.finish is not None:
        return 0.0
    output = min(request.max_new - len(request.output) - request.inflight, CLIP_NEW_TOKENS) * ratio
    return output + max(0, request.length - _lease(request).capacity)


def _close(draft: _Draft) -> Plan:
    """Choose the program, and cut the last piece where a smaller program wastes less."""
    shapes, count = draft.view.shapes, len(draft.decode)
    if not draft.rows:
        return draft.plan(Family.DECODE, 0)
    if not draft.pieces:
        return draft.plan(Family.DECODE, next(size for size in shapes.decode_rows if size >= count))
    last = draft.pieces[-1]
    need = _round_up(count, shapes.tile) + draft.piece_tokens - _round_up(last.length, shapes.tile) + last.length
    size = next(size for size in shapes.mixed_tokens if size >= need)
    if size - need <= MAX_PADDING * size:
        return draft.plan(Family.MIXED, size)
    lower = max((edge for edge in shapes.mixed_tokens if edge < need), default=0)
    kept = last.length - (need - lower)
    # Cutting pays only if the smaller step computes at least as much of the piece for each token of its size.
    if kept > 0 and kept * size >= last.length * lower:
        draft.pieces[-1] = Piece(last.request, last.start, kept, False)
        size = lower
    return draft.plan(Family.MIXED, size)


def _make_room(draft: _Draft) -> Plan:
    """Decode rows need more pages than there are: retract, the shortest output first, the youngest of equals."""
    running = draft.view.running
    ending = tuple(request for request in running if request.finish is not None)
    if ending:
        return Plan(drain=ending)  # They are about to give their pages back.
    candidates = sorted(running, key=lambda request: (-len(request.output), request.number))
    decode = {request.number: request for request in draft.decode}
    victims: list[Request] = []
    need, spare = draft.fresh, draft.spare
    while need > spare and len(candidates) > 1:
        victim = candidates.pop()
        victims.append(victim)
        spare += draft.view.reclaimable(_lease(victim))
        if decode.pop(victim.number, None) is not None and victim.computed >= _lease(victim).capacity:
            need -= 1
    unread = tuple(victim for victim in victims if victim.unread)
    if unread:
        return Plan(drain=unread)
    # What two victims share is counted for neither, so more may come free than was counted: retract alone, then
    # plan anew with what there is.
    assert victims, "a lone request does not fit the pool that it was admitted to"
    return Plan(retract=tuple(victims))


def _break_deadlock(draft: _Draft) -> Plan:
    """No request can go on for lack of pages: wait for rows in flight, else retract one."""
    running = draft.view.running
    unread = tuple(request for request in running if request.unread)
    if unread:
        return Plan(drain=unread)
    assert len(running) > 1, "a lone request does not fit the pool that it was admitted to"
    return Plan(retract=(max(running, key=lambda request: (-len(request.output), request.number)),))


def _lease(request: Request) -> Lease:
    assert request.lease is not None, "a running request has a lease"
    return request.lease


def _pages(tokens: int, page_size: int) -> int:
    return -(-tokens // page_size)


def _round_up(count: int, tile: int) -> int:
    return -(-count // tile) * tile
