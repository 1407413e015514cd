"""Which row and position each entry of the token axis belongs to."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.batch import Batch
from model.interface import Family, Shapes


class Positions(NamedTuple):
    """Per entry of the token axis, int32[T]; padding has row -1, position 0, page 0."""

    row: jax.Array
    position: jax.Array
    page: jax.Array
    """Page that takes the entry's keys and values."""
    offset: jax.Array
    """Place inside that page."""
    window_page: jax.Array | None = None
    """As ``page``, of the window group where there is one."""


def locate(batch: Batch, family: Family, shapes: Shapes) -> Positions:
    """Rows, positions and write targets of a step's tokens."""
    tokens, rows = batch.tokens.shape[0], batch.starts.shape[0]
    index = jnp.arange(tokens, dtype=jnp.int32)
    pieces = {Family.DECODE: 0, Family.SCORE: 1, Family.MIXED: shapes.max_pieces}[family]
    decode = rows - pieces
    row = jnp.full((tokens,), -1, jnp.int32)
    if decode:
        padded = jnp.pad(batch.lengths[:decode], (0, tokens - decode))
        row = jnp.where(padded > 0, index, row)
    for piece in range(decode, rows):
        inside = (index >= batch.offsets[piece]) & (index < batch.offsets[piece] + batch.lengths[piece])
        row = jnp.where(inside, piece, row)
    valid = row >= 0
    safe = jnp.where(valid, row, 0)
    position = jnp.where(valid, batch.starts[safe] + index - batch.offsets[safe], 0)

    def target(table: jax.Array) -> jax.Array:
        return jnp.where(valid, table[safe, position // shapes.page_size], 0)

    window_page = None if batch.window_table is None else target(batch.window_table)
    return Positions(row, position, target(batch.page_table), position % shapes.page_size, window_page)
