"""The attention back end of one step: writes the step's keys and values, then attends, inside one ``shard_map``."""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.tree_util import Partial

from model.batch import Batch, Program, decode_rows
from model.interface import Family, Shapes
from model.kernels.paged_decode import Launch, paged_decode
from model.kv_pool import POOL_AXES, write
from model.layers.attention import Attend, AttendedLayer
from model.layers.paged_xla import WIDE_PAGES, Blocking, Pieces, Prefixes, attend_pieces, attend_rows
from model.positions import Positions
from model.registry import Blueprint
from model.spec import AttentionKind
from sharding.axes import partition

BLOCK_TOKENS = 64


class Rows(NamedTuple):
    """What attention needs to know of a step's rows; the same for every layer of a page group."""

    table: jax.Array
    length: jax.Array
    """int32[R]: positions that the row's last token sees."""
    where: Positions
    prefixes: Prefixes | None
    pieces: Pieces | None


@dataclass(slots=True, frozen=True)
class Fixed:
    """What of one program's attention is known when it is traced."""

    decode: int
    """Rows of the decode part; they come first."""
    blocking: Blocking
    kind: AttentionKind


@dataclass(slots=True, frozen=True)
class Backend:
    """What is fixed when a program is traced."""

    model: Blueprint
    shapes: Shapes

    def blocking(self) -> Blocking:
        """Blocks of about BLOCK_TOKENS keys."""
        pages = min(max(1, BLOCK_TOKENS // self.shapes.page_size), self.shapes.pages_per_row)
        return Blocking(self.shapes.page_size, pages, self.shapes.tile)

    def attend(self, program: Program, batch: Batch, where: Positions) -> Attend:
        """The ``Attend`` of one step of ``program``."""
        blocking = self.blocking()
        decode = decode_rows(program, self.shapes)
        groups = (self.rows(program, batch, batch.page_table, where)._replace(prefixes=find_prefixes(batch, decode)),)
        if batch.window_table is not None and where.window_page is not None:
            groups += (self.rows(program, batch, batch.window_table, where._replace(page=where.window_page)),)
        heads, pool, whole = partition((None, "heads", None)), partition(POOL_AXES), PartitionSpec()

        def attend(
            groups: tuple[Rows, ...],
            q: jax.Array,
            k: jax.Array,
            v: jax.Array,
            pool_k: jax.Array,
            pool_v: jax.Array,
            window: int,
        ) -> AttendedLayer:
            rows = groups[-1] if window else groups[0]
            fixed = Fixed(decode, replace(blocking, window=window), self.model.attention)
            sharded = jax.shard_map(
                partial(layer, fixed=fixed),
                mesh=self.model.mesh,
                in_specs=(heads, heads, heads, pool, pool, whole),
                out_specs=(heads, pool, pool),
                check_vma=False,
            )
            return AttendedLayer(*sharded(q, k, v, pool_k, pool_v, rows))

        # a pytree whose function stays the same, so that layers alike share one trace
        return Partial(attend, groups)

    def rows(self, program: Program, batch: Batch, table: jax.Array, where: Positions) -> Rows:
        """The rows of one page group; ``where`` names pages of that group."""
        decode = decode_rows(program, self.shapes)
        pieces = None if program.family is Family.DECODE else locate_pieces(batch, table, where, decode)
        padded = pad_table(table, self.blocking().block_pages)
        return Rows(padded, batch.starts + batch.lengths, where, None, pieces)


def pad_table(table: jax.Array, multiple: int) -> jax.Array:
    """Page table whose width is a multiple of the block, padded with page 0."""
    return jnp.pad(table, ((0, 0), (0, -table.shape[1] % multiple)))


def find_prefixes(batch: Batch, decode: int) -> Prefixes | None:
    """The groups of decode rows that share pages, and where each row's own pages begin."""
    if batch.shared_rows is None or batch.shared_pages is None:
        return None
    pages = jnp.broadcast_to(batch.shared_pages[:, None], batch.shared_rows.shape)
    # one row more takes what padding writes
    begin = jnp.zeros((decode + 1,), jnp.int32).at[batch.shared_rows].set(pages)
    return Prefixes(batch.shared_rows, batch.shared_pages, begin[:decode])


def locate_pieces(batch: Batch, table: jax.Array, where: Positions, decode: int) -> Pieces:
    """The step's prompt pieces, with their pages of one group."""
    pages = pad_table(table[decode:], WIDE_PAGES)
    return Pieces(batch.offsets[decode:], batch.lengths[decode:], pages, where.position)


def layer(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    pool_k: jax.Array,
    pool_v: jax.Array,
    rows: Rows,
    *,
    fixed: Fixed,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One layer on one shard: the output [T, heads, head_dim] and the layer's new pool."""
    decode, blocking = fixed.decode, fixed.blocking
    pool_k = write(pool_k, rows.where.page, rows.where.offset, k)
    pool_v = write(pool_v, rows.where.page, rows.where.offset, v)
    attend = partial(paged_decode, launch=Launch(window=blocking.window))
    if fixed.kind == "xla":
        # what rows share is seldom inside all their windows
        prefixes = None if blocking.window else rows.prefixes
        attend = partial(attend_rows, prefixes=prefixes, blocking=blocking)
    if rows.pieces is None:
        return attend(q, pool_k, pool_v, rows.table, rows.length), pool_k, pool_v
    out = jnp.zeros(q.shape, jnp.float32)
    if decode:
        done = attend(q[:decode], pool_k, pool_v, rows.table[:decode], rows.length[:decode])
        out = jax.lax.dynamic_update_slice_in_dim(out, done, 0, axis=0)
    return attend_pieces(out, q, pool_k, pool_v, rows.pieces, blocking), pool_k, pool_v
