"""``Plan`` -> ``StepInput``: columns of numpy arrays, padded to a program of the ladder.

What does not change while a request runs is kept by slot, so that a step gathers it in a few numpy
calls instead of asking every request.
"""

from collections.abc import Sequence

import numpy as np

from model.interface import (
    FROM_DEVICE,
    MAX_LOGIT_BIAS,
    MAX_STOP_IDS,
    CountRow,
    Family,
    FullSampling,
    Int32,
    Sampling,
    Shapes,
    SlotId,
    StepInput,
    Variant,
)
from scheduler.planner import Piece, Plan
from scheduler.request import Request


class BatchBuilder:
    """Builds steps. Must hear of every request that gets a slot, through ``bind``.

    Args:
        shapes: the ladders.
        tables: by page group, int32[slots + 1, pages_per_row]; the owner of pages keeps them up to date.
        eos_ids: masked with a request's stop ids until it has ``min_new_tokens``.
    """

    def __init__(self, shapes: Shapes, tables: tuple[Int32, ...], eos_ids: tuple[int, ...]) -> None:
        assert len(eos_ids) <= MAX_STOP_IDS, "the step masks no more end-of-sequence ids"
        slots = shapes.max_rows + 1
        self._shapes = shapes
        self._tables = tables
        self._eos_ids = eos_ids
        self._sampling = Sampling(
            temperature=np.zeros(slots, np.float32),
            top_k=np.zeros(slots, np.int32),
            top_p=np.ones(slots, np.float32),
            min_p=np.zeros(slots, np.float32),
            seed=np.zeros(slots, np.uint32),
        )
        self._repetition = np.ones(slots, np.float32)
        self._frequency = np.zeros(slots, np.float32)
        self._presence = np.zeros(slots, np.float32)
        self._top_logprobs = np.zeros(slots, np.int32)
        self._uncounted: set[SlotId] = set()
        """Slots whose penalty state is not on the device yet."""
        self._bitmasks: dict[int, Int32] = {}
        """The bitmask that allows everything, by number of rows: one for each program."""

    def bind(self, request: Request) -> None:
        """Take note of the sampling parameters of a request that got a slot."""
        assert request.lease is not None, "an admitted request has a lease"
        slot, params, columns = request.lease.slot, request.params, self._sampling
        columns.temperature[slot] = params.temperature
        columns.top_k[slot] = params.top_k
        columns.top_p[slot] = params.top_p
        columns.min_p[slot] = params.min_p
        columns.seed[slot] = params.seed or 0
        self._repetition[slot] = params.repetition_penalty
        self._frequency[slot] = params.frequency_penalty
        self._presence[slot] = params.presence_penalty
        self._top_logprobs[slot] = params.logprobs or 0
        self._uncounted.discard(slot)
        if request.penalized:
            self._uncounted.add(slot)

    def build(self, step: int, plan: Plan) -> StepInput:
        """Lay out the work of a plan whose leases have their pages."""
        shapes, decode, count = self._shapes, plan.decode, len(plan.decode)
        num_rows = shapes.rows(plan.family, plan.size)
        tokens = np.zeros(plan.size, np.int32)
        slots, starts, lengths, offsets = np.zeros((4, num_rows), np.int32)
        sample = np.zeros(num_rows, np.bool_)
        if count:
            tokens[:count] = [FROM_DEVICE if request.inflight else request.last_token for request in decode]
            # each has a lease, or the lengths differ
            slots[:count] = [lease.slot for request in decode if (lease := request.lease) is not None]
            starts[:count] = [request.computed for request in decode]
            lengths[:count] = 1
            offsets[:count] = np.arange(count)
            sample[:count] = True
        at = -(-count // shapes.tile) * shapes.tile
        first_row = first_piece_row(shapes, plan)
        for row, (request, start, length, samples) in enumerate(plan.pieces, first_row):
            tokens[at : at + length] = request.tokens(start, start + length)
            slots[row], starts[row], lengths[row], offsets[row] = _slot(request), start, length, at
            sample[row] = samples
            at += -(-length // shapes.tile) * shapes.tile
        rows = [*enumerate(decode)]
        rows += [(row, piece.request) for row, piece in enumerate(plan.pieces, first_row) if piece.samples]
        wanted = any(_wants_full(request) for _, request in rows if not request.lean)
        full = self._full(num_rows, slots, rows) if wanted else None
        columns = self._sampling
        return StepInput(
            step=step,
            family=plan.family,
            variant=Variant.FULL if full else Variant.LEAN,
            size=plan.size,
            num_decode=count,
            num_tokens=count + sum(piece.length for piece in plan.pieces),
            tokens=tokens,
            slots=slots,
            starts=starts,
            lengths=lengths,
            offsets=offsets,
            sample=sample,
            page_tables=tuple(table[slots] for table in self._tables),
            sampling=Sampling(
                columns.temperature[slots],
                columns.top_k[slots],
                columns.top_p[slots],
                columns.min_p[slots],
                columns.seed[slots],
            ),
            full=full,
            counts=self._counts(rows) if full else (),
            targets=_targets(plan.pieces[0], plan.size) if plan.family is Family.SCORE else None,
        )

    def _full(self, num_rows: int, slots: Int32, rows: Sequence[tuple[int, Request]]) -> FullSampling:
        bias_ids = np.full((num_rows, MAX_LOGIT_BIAS), -1, np.int32)
        bias = np.zeros((num_rows, MAX_LOGIT_BIAS), np.float32)
        banned = np.full((num_rows, 2 * MAX_STOP_IDS), -1, np.int32)
        for row, request in rows:
            params = request.params
            if params.logit_bias:
                bias_ids[row, : len(params.logit_bias)] = [token for token, _ in params.logit_bias]
                bias[row, : len(params.logit_bias)] = [value for _, value in params.logit_bias]
            if _below_minimum(request):
                ids = self._eos_ids + params.stop_token_ids
                banned[row, : len(ids)] = ids
        return FullSampling(
            repetition=self._repetition[slots],
            frequency=self._frequency[slots],
            presence=self._presence[slots],
            bias_ids=bias_ids,
            bias=bias,
            banned_ids=banned,
            bitmask=self._allow_all(num_rows),
            top_logprobs=self._top_logprobs[slots],
        )

    def _allow_all(self, num_rows: int) -> Int32:
        if num_rows not in self._bitmasks:
            mask = np.full((num_rows, -(-self._shapes.vocab_size // 32)), -1, np.int32)
            mask.flags.writeable = False
            self._bitmasks[num_rows] = mask
        return self._bitmasks[num_rows]

    def _counts(self, rows: Sequence[tuple[int, Request]]) -> tuple[CountRow, ...]:
        """Penalty state of slots that sample for the first time since their request was admitted."""
        due = [request for _, request in rows if self._uncounted and _slot(request) in self._uncounted]
        self._uncounted.difference_update(map(_slot, due))
        return tuple(map(_count_row, due))


def first_piece_row(shapes: Shapes, plan: Plan) -> int:
    """Row of a plan's first prompt piece."""
    return 0 if plan.family is Family.SCORE else min(shapes.max_rows, plan.size)


def _slot(request: Request) -> SlotId:
    assert request.lease is not None, "a planned request has a lease"
    return request.lease.slot


def _below_minimum(request: Request) -> bool:
    return len(request.output) + request.inflight < request.params.min_new_tokens


def _wants_full(request: Request) -> bool:
    return request.needs_full or (request.params.min_new_tokens > 0 and _below_minimum(request))


def _count_row(request: Request) -> CountRow:
    output = np.array(request.output, np.int32)
    ids, index = np.unique(np.concatenate([request.prompt, output]), return_inverse=True)
    prompt = np.bincount(index[: request.prompt_len], minlength=len(ids)).astype(np.int32)
    produced = np.bincount(index[request.prompt_len :], minlength=len(ids)).astype(np.int32)
    return CountRow(_slot(request), ids.astype(np.int32), prompt, produced)


def _targets(piece: Piece, size: int) -> Int32:
    """The token after each position of a score step, where its log probability is wanted."""
    targets = np.full(size, -1, np.int32)
    targets[: piece.length] = piece.request.tokens(piece.start + 1, piece.start + piece.length + 1)
    return targets
