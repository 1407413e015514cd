"""Steps that compute nothing of use: XLA's CPU back end sets up the products of a program when it first runs.

The first run of a program took 0.3 to 1 s more than the next (SmolLM2-135M), also when it came from the cache.
"""

import numpy as np

from model.batch import Program
from model.interface import Family, Sampling, Shapes, StepInput

CONTEXT = 512
"""Tokens before each row, so that every loop over pages turns."""
DECODE_ROWS = 8
"""Of a mixed step; the rest of its tokens are a prompt piece."""


def rehearse(program: Program, shapes: Shapes) -> StepInput:
    """A step of a lean decode or mixed ``program`` that touches only page 0 and slot 0, the padding's own.

    Rows of one token each that draw, and in a mixed step one piece of the rest.
    """
    decode_rows = program.size if program.family is Family.DECODE else min(DECODE_ROWS, shapes.max_rows)
    rows = shapes.rows(program.family, program.size)
    lengths, offsets = np.zeros(rows, np.int32), np.arange(rows, dtype=np.int32)
    lengths[:decode_rows] = 1
    if program.family is Family.MIXED:
        piece = rows - shapes.max_pieces
        lengths[piece], offsets[piece:] = program.size - decode_rows, decode_rows
    room = shapes.pages_per_row * shapes.page_size - int(lengths.max())
    return StepInput(
        step=0,
        family=program.family,
        variant=program.variant,
        size=program.size,
        num_decode=decode_rows,
        num_tokens=int(lengths.sum()),
        tokens=np.zeros(program.size, np.int32),
        slots=np.zeros(rows, np.int32),
        starts=np.where(lengths > 0, min(CONTEXT, room), 0).astype(np.int32),
        lengths=lengths,
        offsets=offsets,
        sample=np.zeros(rows, np.bool_),
        page_tables=(np.zeros((rows, shapes.pages_per_row), np.int32),),
        sampling=Sampling(
            np.ones(rows, np.float32),
            np.zeros(rows, np.int32),
            np.ones(rows, np.float32),
            np.zeros(rows, np.float32),
            np.zeros(rows, np.uint32),
        ),
        full=None,
    )
