"""What the next step computes: a pure function of a view of the scheduler.

A request's work is some number of its next tokens. Exactly one token that samples is a decode row,
whether it ends a prompt or a generation; anything else is a prompt piece. Decode rows come first,
then pieces of running prompts, then admissions, all in one step; nothing here is modified.
"""

import itertools
from collections.abc import Sequence
from operator import add

from model.interface import Family
from scheduler.admission import admit
from scheduler.commands import Reason
from scheduler.draft import Blocked, Draft, Piece, Plan, View, lease_of, pages_for, round_up
from scheduler.estimate import expected_tokens, expected_window_tokens
from scheduler.preemption import victims
from scheduler.request import Request

MAX_PADDING = 0.25
"""Share of a bucket that may be padding before the last piece is cut to a smaller one."""


def plan(view: View) -> Plan:
    """Decide what happens next."""
    if view.pause is not None:
        return _stand_still(view)
    draft, mixed = _sort_running(view), view.budgets.mixed
    prompts = mixed or not draft.decode or view.last_family is Family.DECODE
    last = view.last_family if mixed else view.last_prompts
    if draft.scoring and prompts and last is not Family.SCORE and (scored := _score(draft)):
        return scored
    if draft.fresh > min(draft.spare):
        return _make_room(draft)
    draft.promise(draft.fresh)
    if prompts and not mixed:
        draft.aside, draft.decode = draft.decode, []
    for request in draft.prefill:
        if reason := _add_running_piece(draft, request):
            draft.blocked.append(Blocked(request, reason))
    admit(draft)
    if preempting := _preempt(draft):
        return preempting
    if draft.scoring and not draft.rows and not draft.admit and (scored := _score(draft)):
        return scored
    draft.return_aside()
    if draft.rows or draft.admit:
        return _close(draft)
    if draft.scoring or any(r is Reason.NO_PAGES and request.lease is not None for request, r in draft.blocked):
        return _break_deadlock(draft)
    return Plan(blocked=tuple(draft.blocked))


def _stand_still(view: View) -> Plan:
    """Launch nothing. A pause that retracts sends back all that runs, the first of them to the head of the queue."""
    if view.pause == "retract" and view.running:
        unread = tuple(request for request in view.running if request.unread)
        return Plan(drain=unread) if unread else Plan(retract=tuple(reversed(view.running)))
    waiting = itertools.islice(view.waiting, 1)
    held = [request for request in (*view.running, *waiting) if request.finish is None]
    return Plan(blocked=tuple(Blocked(request, Reason.PAUSED) for request in held))


def _sort_running(view: View) -> Draft:
    """Sort running requests by the kind of their next work. The only pass over all of them."""
    draft = Draft(view, view.available)
    decode, under_way, micro_batches = draft.decode, list[int](), view.budgets.micro_batches
    # of the steps since, each has rows of its own: another stage works at each
    since = view.step - (micro_batches - 1)
    for request in view.running:
        computed = request.computed
        if computed >= request.goal or request.finish is not None:
            continue  # All of it is launched, or the rest is not wanted.
        if request.inflight > request.max_inflight or (request.inflight and request.planned > since):
            draft.blocked.append(Blocked(request, Reason.IN_FLIGHT))
            under_way.append(request.planned)
        elif request.length - computed == 1 and request.max_new:
            decode.append(request)
        elif request.scoring and computed == request.next_score:
            draft.scoring.append(request)
        else:
            draft.prefill.append(request)
    share = _share(len(decode), under_way, micro_batches)
    limit = min(view.max_rows, view.shapes.decode_rows[-1], share)
    if len(decode) > limit:
        decode[:] = _by_turn(decode)
        draft.blocked += [Blocked(request, Reason.TOKEN_BUDGET) for request in decode[limit:]]
        del decode[limit:]
    draft.fresh = sum([one.computed >= lease.capacity for one in decode if (lease := one.lease) is not None])
    return draft


def _share(ready: int, under_way: Sequence[int], micro_batches: int) -> int:
    """Decode rows of the next of ``micro_batches`` steps that are to be under way with equally many rows each.

    ``under_way``: the step of each row that is in flight.
    """
    left = max(1, micro_batches - len(set(under_way)))
    return min(-(-(ready + len(under_way)) // micro_batches), -(-ready // left))


def _by_turn(rows: Sequence[Request]) -> list[Request]:
    """Least recently planned first; of equals those first that follow it, so that all take turns on a circle."""
    first = min(range(len(rows)), key=lambda index: rows[index].planned)
    return sorted([*rows[first:], *rows[:first]], key=lambda request: request.planned)


def _score(draft: Draft) -> Plan | None:
    """A step of its own for the first request with positions to score, if it can have the pages."""
    view = draft.view
    request = draft.scoring[0]
    wanted = min(view.shapes.score_tokens, request.score_end - request.computed)
    length = min(wanted, lease_of(request).capacity + min(draft.spare) * view.shapes.page_size - request.computed)
    if length <= 0:
        return None
    piece = Piece(request, request.computed, length, False)
    return Plan(Family.SCORE, view.shapes.score_tokens, pieces=(piece,))


def _add_running_piece(draft: Draft, request: Request) -> Reason | None:
    """Add as much of a running prompt as fits, or say why nothing does."""
    capacity, size = lease_of(request).capacity, draft.view.shapes.page_size
    length, reason = draft.piece_length(request.piece_end - request.computed)
    length = min(length, capacity + min(draft.spare) * size - request.computed)
    if reason or length <= 0:
        return reason or Reason.NO_PAGES
    draft.add_piece(request, request.computed, length)
    draft.promise(max(0, pages_for(request.computed + length - capacity, size)))
    return None


def _preempt(draft: Draft) -> Plan | None:
    """Let less urgent requests give way to the first of the queue, if that lets it in."""
    view, rule = draft.view, draft.view.preemption
    if rule is None or draft.newcomer is None:
        return None

    def freed(request: Request) -> tuple[float, ...]:
        size, window = view.shapes.page_size, view.budgets.window
        expected: tuple[float, ...] = (expected_tokens((request,), view.token_ratio),)
        if window:
            expected = (*expected, expected_window_tokens((request,), window, size))
        pages = view.reclaimable(lease_of(request))
        return tuple([count * size + tokens for count, tokens in zip(pages, expected, strict=True)])

    chosen = victims(draft.newcomer, view.running, draft.short, freed, rule)
    unread = tuple(victim for victim in chosen if victim.unread)
    if unread:
        return Plan(drain=unread)
    return Plan(preempt=chosen, newcomer=draft.newcomer) if chosen else None


def _close(draft: Draft) -> Plan:
    """Choose the program, and cut the last piece where a smaller program wastes less."""
    shapes, count = draft.view.shapes, len(draft.decode)
    if not draft.rows:
        return draft.plan(Family.DECODE, 0)
    if not draft.pieces:
        return draft.plan(Family.DECODE, next(size for size in shapes.decode_rows if size >= count))
    last = draft.pieces[-1]
    need = round_up(count, shapes.tile) + draft.piece_tokens - round_up(last.length, shapes.tile) + last.length
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


def _make_room(draft: Draft) -> Plan:
    """Decode rows need more pages than there are: retract, in the order of ``_claim``."""
    running = draft.view.running
    ending = tuple(request for request in running if request.finish is not None)
    if ending:
        return Plan(drain=ending)  # They are about to give their pages back.
    candidates = sorted(running, key=_claim)
    decode = {request.number: request for request in draft.decode}
    victims: list[Request] = []
    need, spare = draft.fresh, draft.spare
    while need > min(spare) and len(candidates) > 1:
        victim = candidates.pop()
        victims.append(victim)
        spare = tuple(map(add, spare, draft.view.reclaimable(lease_of(victim))))
        if decode.pop(victim.number, None) is not None and victim.computed >= lease_of(victim).capacity:
            need -= 1
    unread = tuple(victim for victim in victims if victim.unread)
    if unread:
        return Plan(drain=unread)
    # What two victims share is counted for neither, so more may come free than was counted: retract alone, then
    # plan anew with what there is.
    assert victims, "a lone request does not fit the pool that it was admitted to"
    return Plan(retract=tuple(victims))


def _break_deadlock(draft: Draft) -> Plan:
    """No request can go on for lack of pages: wait for rows in flight, else retract one."""
    running = draft.view.running
    unread = tuple(request for request in running if request.unread)
    if unread:
        return Plan(drain=unread)
    assert len(running) > 1, "a lone request does not fit the pool that it was admitted to"
    return Plan(retract=(max(running, key=_claim),))


def _claim(request: Request) -> tuple[int, int, int]:
    """Larger for who is retracted earlier: the least urgent, then the shortest output, then the youngest."""
    return -request.urgency, -len(request.output), request.number
