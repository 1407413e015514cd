"""The padded sizes of a start configuration: a pure function of its limits."""

from configs.schema import Resolved
from model.interface import Shapes

MAX_PIECES = 8
TILE = 1
GRAIN = 32
"""Token budgets are multiples of this."""
SMALL_STEPS = (64, 128)
"""Mixed steps below 256 tokens: a few new prompts beside 32 decode rows need little over 64."""
SCORE_TOKENS = 64


def rungs(first: int, factor: int, last: int) -> tuple[int, ...]:
    """``first``, ``first * factor`` … below ``last``, then ``last``."""
    sizes = []
    size = first
    while size < last:
        sizes.append(size)
        size *= factor
    return (*sizes, last)


def make_shapes(
    max_rows: int,
    chunk_tokens: int,
    page_size: int,
    context_length: int,
    vocab_size: int,
    window: int = 0,
    micro_batches: int = 1,
) -> Shapes:
    """Ladders 2, 8, 32 … rows and 64, 128, 256, 1024 … tokens.

    A decode program of one row is never built: XLA's CPU back end runs a one-row bfloat16 product ten times slower than
    one of two rows. The token ladder ends where decode rows and GRAIN tokens of prompt fit, or at the step's budget.
    Rows and budget are dealt among ``micro_batches`` steps.
    """
    rows, tokens = -(-max_rows // micro_batches), -(-chunk_tokens // micro_batches)
    budget = -(-max(tokens, rows + GRAIN) // GRAIN) * GRAIN
    return Shapes(
        decode_rows=rungs(2, 4, max(2, rows)),
        mixed_tokens=(*(size for size in SMALL_STEPS if size < budget), *rungs(256, 4, max(64, budget))),
        score_tokens=SCORE_TOKENS,
        max_rows=max_rows,
        max_pieces=MAX_PIECES,
        tile=TILE,
        page_size=page_size,
        pages_per_row=-(-context_length // page_size),
        vocab_size=vocab_size,
        window=window,
    )


def shapes_of(resolved: Resolved, vocab_size: int) -> Shapes:
    """The sizes of a launch file whose values are decided."""
    return make_shapes(
        resolved.max_running_requests,
        resolved.chunk_tokens,
        resolved.page_size,
        resolved.context_length,
        vocab_size,
        resolved.window if resolved.window_pages else 0,
        resolved.micro_batches,
    )
