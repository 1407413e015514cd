"""The values of planning: what a plan depends on, what it is, and a plan in the making."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from model.interface import Family, Shapes
from scheduler.commands import PauseMode, Reason
from scheduler.kv_cache import Lease
from scheduler.preemption import Preemption, Shortfall
from scheduler.radix_cache import Hit
from scheduler.request import Request


class Blocked(NamedTuple):
    """A request that is left out, and why."""

    request: Request
    reason: Reason


class Passed(NamedTuple):
    """A waiting request that did not fit, and how many behind it were admitted in its stead."""

    request: Request
    times: int


class Piece(NamedTuple):
    """The tokens ``[start, start + length)`` of a request."""

    request: Request
    start: int
    length: int
    samples: bool


@dataclass(slots=True, frozen=True)
class Budgets:
    """What an operator says about plans. The defaults bound nothing."""

    max_prefill_tokens: int = 2**31 - 1
    """Prompt tokens of one plan, each piece rounded up to pages."""
    max_passed_over: int = 0
    """How many requests may pass one that does not fit while it waits; 0 is strict admission."""
    mixed: bool = True
    """Whether a step may hold decode rows and prompt pieces; otherwise they take turns."""
    defer_shared_tokens: int = 0
    """Tokens of an uncached prefix that are worth waiting for when another request computes them now; 0 waits never."""
    reuse: bool = True
    """Whether there is a prefix cache at all."""
    window: int = 0
    """Tokens that layers with a sliding window see, where they have a page group of their own; 0 where not."""
    window_pages: int = 0
    """Of that group."""
    micro_batches: int = 1
    """Plans among which decode rows are dealt evenly, so that as many steps can be under way with rows of their own."""


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
    reclaimable: Callable[[Lease], tuple[int, ...]]
    """Pages that would be available if the lease were closed, by group."""
    shapes: Shapes
    max_rows: int
    """Rows that a plan may hold."""
    token_ratio: float
    """Share of its remaining output that a running request is assumed to need."""
    last_family: Family | None
    """Family of the step launched before."""
    last_prompts: Family | None = None
    """Family of the last step launched that was no decode step."""
    preemption: Preemption | None = None
    """When running requests give way to more urgent ones; None: never."""
    budgets: Budgets = Budgets()
    pause: PauseMode | None = None
    """Why no work is planned: generation stands still."""
    step: int = 0
    """Steps launched so far."""


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
    preempt: tuple[Request, ...] = ()
    """They go back to the queue as those retracted do, to let a more urgent request in."""
    drain: tuple[Request, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    """Running requests left out, then those of the queue that were tried and not admitted, at least the first; all
    behind the last of them are queued behind it."""
    passed: tuple[Passed, ...] = ()
    newcomer: Request | None = None
    """With ``preempt``: who is let in."""

    @property
    def idle(self) -> bool:
        """Whether it changes nothing."""
        return not (self.size or self.admit or self.retract or self.preempt or self.drain)

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
                [request.number for request in self.preempt],
                [request.number for request in self.drain],
                [(request.number, reason) for request, reason in self.blocked],
                [(request.number, times) for request, times in self.passed],
                self.newcomer and self.newcomer.number,
            )
        )


@dataclass(slots=True)
class Draft:
    """A plan in the making."""

    view: View
    spare: tuple[int, ...]
    """Pages not yet promised, by group. Rows take as many in each group, so the smallest decides."""
    decode: list[Request] = field(default_factory=list[Request])
    fresh: int = 0
    """Decode rows that need a page."""
    aside: list[Request] = field(default_factory=list[Request])
    """Decode rows that get no work if there are prompt pieces, because steps are not mixed."""
    prefill: list[Request] = field(default_factory=list[Request])
    scoring: list[Request] = field(default_factory=list[Request])
    pieces: list[Piece] = field(default_factory=list[Piece])
    piece_tokens: int = 0
    """Of the pieces, each rounded up to the tile."""
    prefill_tokens: int = 0
    """Of the pieces, each rounded up to pages."""
    admit: list[Request] = field(default_factory=list[Request])
    blocked: list[Blocked] = field(default_factory=list[Blocked])
    passed: list[Passed] = field(default_factory=list[Passed])
    newcomer: Request | None = None
    """The first of the queue, if others may give way to it."""
    short: Shortfall = Shortfall(0, (0,))
    """What it lacks."""

    @property
    def rows(self) -> int:
        """Rows so far."""
        return len(self.decode) + len(self.pieces)

    def promise(self, pages: int) -> None:
        """Keep so many pages of each group for a row."""
        self.spare = tuple([left - pages for left in self.spare])

    def spare_after(self, hit: Hit) -> tuple[int, ...]:
        """Pages not yet promised once a prefix is locked and loaded, by group."""
        taken = (hit.unlocked + hit.host, hit.window_unlocked)
        return tuple([left - pages for left, pages in zip(self.spare, taken, strict=False)])

    def room(self, decode_rows: int) -> int:
        """Tokens that a further piece may have."""
        shapes = self.view.shapes
        return shapes.mixed_tokens[-1] - round_up(decode_rows, shapes.tile) - self.piece_tokens

    def piece_length(self, wanted: int) -> tuple[int, Reason | None]:
        """Tokens that a further piece can have of the step, before pages are looked at."""
        view = self.view
        if len(self.pieces) >= view.shapes.max_pieces:
            return 0, Reason.PIECE_LIMIT
        room = min(self.room(len(self.decode)), view.budgets.max_prefill_tokens - self.prefill_tokens)
        if room <= 0 or self.rows >= view.max_rows or (self.decode and not view.budgets.mixed):
            return 0, Reason.TOKEN_BUDGET
        return min(wanted, room), None

    def add_piece(self, request: Request, start: int, length: int) -> None:
        """Give a request its next prompt tokens."""
        shapes = self.view.shapes
        samples = start + length == request.length and request.max_new > 0
        self.pieces.append(Piece(request, start, length, samples))
        self.piece_tokens += round_up(length, shapes.tile)
        self.prefill_tokens += round_up(length, shapes.page_size)

    def decode_room(self, spare: int) -> Reason | None:
        """Why the step cannot take one more decode row."""
        view = self.view
        count = len(self.aside) + len(self.decode) + 1
        fits = view.budgets.mixed and self.room(count) >= 0 if self.pieces else count <= view.shapes.decode_rows[-1]
        if not fits or len(self.aside) + self.rows >= view.max_rows:
            return Reason.TOKEN_BUDGET
        return Reason.NO_PAGES if spare < 1 else None

    def return_aside(self) -> None:
        """Decode rows that were put aside run now, or are blocked."""
        if self.pieces:
            self.blocked += [Blocked(request, Reason.TOKEN_BUDGET) for request in self.aside]
        elif self.aside:
            self.decode = self.aside + self.decode
        self.aside = []

    def plan(self, family: Family, size: int) -> Plan:
        """What has been decided."""
        return Plan(
            family,
            size,
            tuple(self.decode),
            tuple(self.pieces),
            admit=tuple(self.admit),
            blocked=tuple(self.blocked),
            passed=tuple(self.passed),
        )


def lease_of(request: Request) -> Lease:
    """The lease of a running request."""
    assert request.lease is not None, "a running request has a lease"
    return request.lease


def pages_for(tokens: int, page_size: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // page_size)


def round_up(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple
