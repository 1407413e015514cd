"""Steps that stand for no request: to measure programs with, and to run them once before they serve.

XLA's CPU back end sets up the products of a program when it first runs. That run took 0.3 to 1 s more than the next
(SmolLM2-135M), also when the program came from the cache.
"""

from dataclasses import replace

import numpy as np

from model.batch import Program, decode_rows
from model.interface import (
    MAX_LOGIT_BIAS,
    MAX_STOP_IDS,
    Family,
    FullSampling,
    Int32,
    Sampling,
    Shapes,
    StepInput,
    Variant,
)

CONTEXT = 512
"""Tokens before each row of a rehearsal, so that the loops over pages turn."""


def rehearse(program: Program, shapes: Shapes) -> StepInput:
    """A step of ``program`` that touches only page 0 and slot 0, the padding's own."""
    room = shapes.pages_per_row * shapes.page_size - program.size
    step = synthetic(program, shapes, max(0, min(CONTEXT, room)), 0)
    return replace(step, slots=np.zeros_like(step.slots), sample=np.zeros_like(step.sample))


def synthetic(program: Program, shapes: Shapes, context: int, num_pages: int, window_pages: int = 0) -> StepInput:
    """A full step of ``program``: every decode row behind its own ``context`` tokens, one piece in the rest.

    Pages of each group are drawn from 1 to their number; without any, all are page 0.
    """
    rows, decode = shapes.rows(program.family, program.size), decode_rows(program, shapes)
    # a mixed step of decode rows and one piece; as many rows as leave the piece a tile
    running = decode if program.family is Family.DECODE else min(decode, program.size // 2) // shapes.tile * shapes.tile
    slots, starts, lengths, offsets = np.zeros((4, rows), np.int32)
    slots[:running] = np.arange(running) % shapes.max_rows + 1
    starts[:running], lengths[:running], offsets[:running] = context, 1, np.arange(running)
    if program.family is not Family.DECODE:
        slots[decode], starts[decode] = shapes.max_rows, context
        lengths[decode], offsets[decode] = program.size - running, running
    used = -(-(context + program.size) // shapes.page_size)
    width = min(used, shapes.pages_per_row)

    def table(count: int) -> Int32:
        pages = np.zeros((rows, shapes.pages_per_row), np.int32)
        pages[:, :width] = np.random.default_rng(0).integers(min(1, count), count + 1, (rows, width))
        return pages

    return StepInput(
        step=1,
        family=program.family,
        variant=program.variant,
        size=program.size,
        num_decode=running,
        num_tokens=int(lengths.sum()),
        tokens=np.full(program.size, 5, np.int32),
        slots=slots,
        starts=starts,
        lengths=lengths,
        offsets=offsets,
        sample=lengths > 0,
        page_tables=tuple(map(table, (num_pages, window_pages)[: shapes.page_groups])),
        sampling=Sampling(
            np.ones(rows, np.float32),
            np.zeros(rows, np.int32),
            np.ones(rows, np.float32),
            np.zeros(rows, np.float32),
            np.arange(rows, dtype=np.uint32),
        ),
        full=neutral(rows, shapes) if program.variant is Variant.FULL else None,
        targets=targets(program) if program.family is Family.SCORE else None,
    )


def targets(program: Program) -> Int32:
    """Something to score at every position."""
    return np.full(program.size, 5, np.int32)


def neutral(rows: int, shapes: Shapes) -> FullSampling:
    """What the full variant reads where no row asks for anything."""
    return FullSampling(
        repetition=np.ones(rows, np.float32),
        frequency=np.zeros(rows, np.float32),
        presence=np.zeros(rows, np.float32),
        bias_ids=np.full((rows, MAX_LOGIT_BIAS), -1, np.int32),
        bias=np.zeros((rows, MAX_LOGIT_BIAS), np.float32),
        banned_ids=np.full((rows, 2 * MAX_STOP_IDS), -1, np.int32),
        bitmask=np.full((rows, -(-shapes.vocab_size // 32)), -1, np.int32),
        top_logprobs=np.zeros(rows, np.int32),
    )
