"""Attention over the paged pool in plain XLA: loops over blocks of pages with an online softmax.

The trip count is read from the batch, so context is no dimension of the compiled program and a long context costs
only the rows that have one (measured: 27 ms against 70 ms for one gather per context bucket, 32 rows at 256 tokens).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.exponential import exponential
from model.kv_pool import element_type, from_bits
from model.layers.attention import neutral
from model.sharing import GROUPS_AT_ONCE, TURN_PAGES

WIDE = 128
"""Queries of one cut of a long prompt piece."""
WIDE_PAGES = 16
"""Pages of keys in one turn for a wide cut; more work a turn, fewer turns."""
NARROW = 32
"""Queries of one cut of what is left."""
NARROW_PAGES = 8
NARROW_AT_ONCE = 4
"""Narrow cuts in one turn: ops on less than about 256 KB run on one thread."""
UNROLLED = 64
"""LLVM unrolls a loop of so many mere copies, and does not vectorise what is left of it; one of 80 it does."""
OPEN_PAGES = 32
"""Pages in one turn of narrow cuts whose queries all see all keys: no mask, fewer and larger ops."""


@dataclass(slots=True, frozen=True)
class Blocking:
    """How the loops cut their work."""

    page_size: int
    block_pages: int
    """Pages of keys in one turn of the loop."""
    tile: int
    """Queries of a prompt piece in one turn."""
    window: int = 0
    """Keys that a query sees, its own the last; 0 means all."""
    open_pages: int = 0
    """Pages in one turn as long as all queries see all keys; 0: no such turns."""


class Softmax(NamedTuple):
    """A softmax-weighted sum in the making (Milakov and Gimelshein, 2018)."""

    top: jax.Array
    """float32[N, kv, Q]: largest score so far."""
    total: jax.Array
    """float32[N, kv, Q]: sum of exponentials below ``top``."""
    acc: jax.Array
    """float32[N, kv, Q, head_dim]."""


def start(n: int, kv: int, queries: int, head_dim: int) -> Softmax:
    """The sum over no key."""
    shape = (n, kv, queries)
    return Softmax(
        jnp.full(shape, neutral(jnp.dtype("float32")), jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((*shape, head_dim), jnp.float32),
    )


def fold(state: Softmax, scores: jax.Array, values: jax.Array) -> Softmax:
    """Take in scores float32[N, kv, Q, S] (masked ones ``neutral``) and values [N, kv, S, head_dim]."""
    top = jnp.maximum(state.top, jnp.max(scores, axis=-1))
    scale = jnp.exp(state.top - top)
    below = scores - top[..., None]
    # bfloat16 keeps less of a weight than the polynomial gives
    weights = exponential(below).astype(values.dtype) if values.dtype == jnp.bfloat16 else jnp.exp(below)
    total = state.total * scale + jnp.sum(weights, axis=-1, dtype=jnp.float32)
    gained = jnp.einsum("nkqs,nksd->nkqd", weights, values, preferred_element_type=jnp.float32)
    return Softmax(top, total, state.acc * scale[..., None] + gained)


def finish(state: Softmax) -> jax.Array:
    """float32[N, kv, Q, head_dim]; rows that saw no key are padding and hold some finite value."""
    return state.acc / jnp.maximum(state.total, 1e-30)[..., None]


def gather_block(pool: jax.Array, pages: jax.Array) -> jax.Array:
    """Keys or values of ``pages`` int32[N, n] as [N, kv, n * page_size, head_dim].

    The pool is viewed as [pages * kv, page_size * head_dim], so that the gather lands in the order that the product
    reads; gathering [pages, kv, ...] and transposing cost 24 of 61 ms a step at 32 rows.
    """
    count, kv, page_size, head_dim = pool.shape
    index = pages[:, None, :] * kv + jnp.arange(kv, dtype=jnp.int32)[None, :, None]
    taken = pool.reshape(count * kv, page_size * head_dim).at[index.reshape(-1)].get(mode="promise_in_bounds")
    if pool.dtype == jnp.uint16 and head_dim <= UNROLLED:
        # changes nothing, but keeps the loop: 87 us for 32 rows with 64 keys instead of 137
        taken |= (pages[0, 0] < 0).astype(jnp.uint16)
    # shape: [N * kv * n, page_size * head_dim] -> [N, kv, n * page_size, head_dim]
    return from_bits(taken).reshape(*index.shape[:2], index.shape[2] * page_size, head_dim)


class Prefixes(NamedTuple):
    """Groups of rows that begin with the same pages; see ``model.sharing``."""

    rows: jax.Array
    """int32[groups, members]; padding is the number of rows."""
    pages: jax.Array
    """int32[groups]: how many pages each group shares."""
    begin: jax.Array
    """int32[R]: first page that a row does not share."""


def attend_prefixes(
    q: jax.Array, pool_k: jax.Array, pool_v: jax.Array, table: jax.Array, prefixes: Prefixes, page_size: int
) -> Softmax:
    """The rows' sums over the pages that they share, each page read once a group: ``q`` [R, heads, head_dim]."""
    rows, heads, head_dim = q.shape
    kv = pool_k.shape[1]
    group, members = heads // kv, prefixes.rows.shape[1]
    span = TURN_PAGES * page_size
    table = jnp.pad(table, ((0, 0), (0, -table.shape[1] % TURN_PAGES)))
    # one row more takes what padding writes
    padded = jnp.pad(q, ((0, 1), (0, 0), (0, 0)))

    def some_groups(turn: jax.Array, state: Softmax) -> Softmax:
        at = turn * GROUPS_AT_ONCE
        chosen = jax.lax.dynamic_slice_in_dim(prefixes.rows, at, GROUPS_AT_ONCE)
        shared = jax.lax.dynamic_slice_in_dim(prefixes.pages, at, GROUPS_AT_ONCE)
        # shape: [groups, members, kv, group, head_dim] -> [groups, kv, members * group, head_dim]
        queries = padded[chosen].reshape(GROUPS_AT_ONCE, members, kv, group, head_dim)
        queries = queries.transpose(0, 2, 1, 3, 4).reshape(GROUPS_AT_ONCE, kv, members * group, head_dim)
        # the first member is a real row, or the group is padding
        leader = table[jnp.minimum(chosen[:, 0], rows - 1)]

        def one_block(block: jax.Array, sums: Softmax) -> Softmax:
            pages = jax.lax.dynamic_slice_in_dim(leader, block * TURN_PAGES, TURN_PAGES, axis=1)
            keys, values = gather_block(pool_k, pages), gather_block(pool_v, pages)
            position = block * span + jnp.arange(span, dtype=jnp.int32)
            seen = position[None, :] < (shared * page_size)[:, None]
            return fold(sums, masked_scores(queries, keys, seen), values)

        sums = start(GROUPS_AT_ONCE, kv, members * group, head_dim)
        sums = jax.lax.fori_loop(0, (jnp.max(shared) + TURN_PAGES - 1) // TURN_PAGES, one_block, sums)

        def by_row(x: jax.Array) -> jax.Array:
            # shape: [groups, kv, members * group, ...] -> [groups * members, kv, group, ...]
            split = x.reshape(GROUPS_AT_ONCE, kv, members, group, *x.shape[3:])
            return jnp.moveaxis(split, 2, 1).reshape(GROUPS_AT_ONCE * members, kv, group, *x.shape[3:])

        return Softmax(*(old.at[chosen.reshape(-1)].set(by_row(new)) for old, new in zip(state, sums, strict=True)))

    used = jnp.sum(prefixes.pages > 0)
    turns = (used + GROUPS_AT_ONCE - 1) // GROUPS_AT_ONCE
    state = jax.lax.fori_loop(0, turns, some_groups, start(rows + 1, kv, group, head_dim))
    return Softmax(*(x[:rows] for x in state))


def masked_scores(queries: jax.Array, keys: jax.Array, seen: jax.Array) -> jax.Array:
    """float32[N, kv, Q, S] from queries [N, kv, Q, head_dim], keys [N, kv, S, head_dim] and ``seen`` bool[N, S]."""
    scores = jnp.einsum("nkqd,nksd->nkqs", queries, keys, preferred_element_type=jnp.float32)
    return jnp.where(seen[:, None, None, :], scores, neutral(scores.dtype))


def attend_rows(
    q: jax.Array,
    pool_k: jax.Array,
    pool_v: jax.Array,
    table: jax.Array,
    length: jax.Array,
    prefixes: Prefixes | None,
    blocking: Blocking,
) -> jax.Array:
    """One query a row: ``q`` float32[R, heads, head_dim] over the first ``length`` int32[R] positions of each row.

    Of these positions only the last ones where there is a window; the rows then share nothing.
    """
    assert prefixes is None or not blocking.window, "a window does not begin with the shared pages"
    rows, heads, head_dim = q.shape
    kv, page_size = pool_k.shape[1], blocking.page_size
    # once for all loops: without the barrier XLA rotates the queries in each again
    q = jax.lax.optimization_barrier(q.astype(element_type(pool_k.dtype)))
    # shape: [R, kv, heads / kv, head_dim]
    grouped = q.reshape(rows, kv, heads // kv, head_dim)
    # the first position that a row sees
    oldest = jnp.maximum(length - blocking.window, 0) if blocking.window else jnp.zeros((rows,), jnp.int32)
    begin = oldest // page_size if prefixes is None else prefixes.begin
    state = start(rows, kv, heads // kv, head_dim)
    if prefixes is not None:
        state = attend_prefixes(q, pool_k, pool_v, table, prefixes, page_size)

    def turn(first: jax.Array, pages_a_turn: int, state: Softmax) -> Softmax:
        at = begin[:, None] + first + jnp.arange(pages_a_turn, dtype=jnp.int32)[None, :]
        pages = jnp.take_along_axis(table, at, axis=1, mode="clip")
        keys, values = gather_block(pool_k, pages), gather_block(pool_v, pages)
        offset = jnp.arange(pages_a_turn * page_size, dtype=jnp.int32)
        position = ((begin + first) * page_size)[:, None] + offset[None, :]
        seen = (position >= oldest[:, None]) & (position < length[:, None])
        return fold(state, masked_scores(grouped, keys, seen), values)

    whole = blocking.block_pages
    unit = whole if whole % 2 else whole // 2
    units = (jnp.max(length - begin * page_size) + unit * page_size - 1) // (unit * page_size)
    turns = units * unit // whole
    state = jax.lax.fori_loop(0, turns, lambda i, state: turn(i * whole, whole, state), state)
    if unit < whole:
        # what half a turn is enough for
        state = jax.lax.fori_loop(turns * 2, units, lambda i, state: turn(i * unit, unit, state), state)
    return finish(state).reshape(rows, heads, head_dim)


class Tiles(NamedTuple):
    """Consecutive queries of some rows."""

    pages: jax.Array
    """int32[N, W]: page tables of the tiles' rows."""
    position: jax.Array
    """int32[N, tile]; 0 is padding."""
    seen: jax.Array
    """int32[N]: keys that all queries of a tile see; large for padding."""


def attend_tiles(q: jax.Array, pool_k: jax.Array, pool_v: jax.Array, tiles: Tiles, blocking: Blocking) -> jax.Array:
    """Causal attention for tiles of consecutive queries: ``q`` float32[N, tile, heads, head_dim]."""
    count, tile, heads, head_dim = q.shape
    kv = pool_k.shape[1]
    group, span = heads // kv, blocking.block_pages * blocking.page_size
    # shape: [N, tile, kv, group, head_dim] -> [N, kv, group * tile, head_dim]
    grouped = q.reshape(count, tile, kv, group, head_dim).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(count, kv, group * tile, head_dim)

    def block(first: jax.Array, pages: int) -> tuple[jax.Array, jax.Array]:
        some = jax.lax.dynamic_slice_in_dim(tiles.pages, first, pages, axis=1)
        keys, values = gather_block(pool_k, some), gather_block(pool_v, some)
        scores = jnp.einsum("nkqd,nksd->nkqs", grouped.astype(keys.dtype), keys, preferred_element_type=jnp.float32)
        return scores, values

    def open_turn(index: jax.Array, state: Softmax) -> Softmax:
        return fold(state, *block(index * blocking.open_pages, blocking.open_pages))

    def turn(index: jax.Array, state: Softmax) -> Softmax:
        scores, values = block(index * blocking.block_pages, blocking.block_pages)
        seen = index * span + jnp.arange(span, dtype=jnp.int32)[None, None, :] <= tiles.position[:, :, None]
        mask = jnp.broadcast_to(seen[:, None, None], (count, 1, group, tile, span)).reshape(count, 1, -1, span)
        return fold(state, jnp.where(mask, scores, neutral(scores.dtype)), values)

    state, first = start(count, kv, group * tile, head_dim), jnp.int32(0)
    if blocking.open_pages:
        opened = jnp.min(tiles.seen) // (blocking.open_pages * blocking.page_size)
        state = jax.lax.fori_loop(0, opened, open_turn, state)
        first = opened * (blocking.open_pages // blocking.block_pages)
    state = jax.lax.fori_loop(first, jnp.max(tiles.position) // span + 1, turn, state)
    out = finish(state).reshape(count, kv, group, tile, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(count, tile, heads, head_dim)


def attend_sliding_tiles(
    q: jax.Array, pool_k: jax.Array, pool_v: jax.Array, tiles: Tiles, blocking: Blocking
) -> jax.Array:
    """As ``attend_tiles``, over the keys of the window alone: each tile's pages begin where its first query's do."""
    count, tile, heads, head_dim = q.shape
    kv, page_size, pages_a_turn = pool_k.shape[1], blocking.page_size, blocking.block_pages
    group, span = heads // kv, pages_a_turn * page_size
    # shape: [N, tile, kv, group, head_dim] -> [N, kv, group * tile, head_dim]
    grouped = q.reshape(count, tile, kv, group, head_dim).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(count, kv, group * tile, head_dim)
    begin = jnp.maximum(tiles.seen - blocking.window, 0) // page_size

    def turn(index: jax.Array, state: Softmax) -> Softmax:
        at = begin[:, None] + index * pages_a_turn + jnp.arange(pages_a_turn, dtype=jnp.int32)[None, :]
        pages = jnp.take_along_axis(tiles.pages, at, axis=1, mode="clip")
        keys, values = gather_block(pool_k, pages), gather_block(pool_v, pages)
        scores = jnp.einsum("nkqd,nksd->nkqs", grouped.astype(keys.dtype), keys, preferred_element_type=jnp.float32)
        position = (begin * page_size + index * span)[:, None] + jnp.arange(span, dtype=jnp.int32)[None, :]
        age = tiles.position[:, :, None] - position[:, None, :]
        seen = (age >= 0) & (age < blocking.window)
        mask = jnp.broadcast_to(seen[:, None, None], (count, 1, group, tile, span)).reshape(count, 1, -1, span)
        return fold(state, jnp.where(mask, scores, neutral(scores.dtype)), values)

    turns = (jnp.max(jnp.max(tiles.position, axis=1) + 1 - begin * page_size) + span - 1) // span
    state = jax.lax.fori_loop(0, turns, turn, start(count, kv, group * tile, head_dim))
    out = finish(state).reshape(count, kv, group, tile, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(count, tile, heads, head_dim)


class Pieces(NamedTuple):
    """Where the prompt pieces lie on the token axis."""

    offset: jax.Array
    """int32[P]: index of each piece's first token."""
    length: jax.Array
    """int32[P]; 0 is padding."""
    table: jax.Array
    """int32[P, W]: their page tables."""
    position: jax.Array
    """int32[T]: position of every entry of the token axis."""


def attend_pieces(
    out: jax.Array, q: jax.Array, pool_k: jax.Array, pool_v: jax.Array, pieces: Pieces, blocking: Blocking
) -> jax.Array:
    """Fill ``out`` float32[T, heads, head_dim] for the entries of prompt pieces: wide cuts, then narrow ones."""
    page_size, tokens = blocking.page_size, q.shape[0]
    wide = pieces.length // WIDE if tokens >= WIDE else jnp.zeros_like(pieces.length)
    if tokens >= WIDE:
        cuts = Cuts(pieces.offset, wide, Blocking(page_size, WIDE_PAGES, WIDE, blocking.window))
        out, _ = attend_cuts(out, q, pool_k, pool_v, pieces, cuts, Share(jnp.int32(0), 1))
    narrow = min(NARROW, tokens)
    rest = pieces.length - wide * WIDE
    open_pages = OPEN_PAGES if pieces.table.shape[1] >= OPEN_PAGES else 0
    narrowly = Blocking(page_size, NARROW_PAGES, narrow, blocking.window, open_pages)
    cuts = Cuts(pieces.offset + wide * WIDE, (rest + narrow - 1) // narrow, narrowly)
    out, done = attend_cuts(out, q, pool_k, pool_v, pieces, cuts, Share(jnp.int32(0), NARROW_AT_ONCE))
    return attend_cuts(out, q, pool_k, pool_v, pieces, cuts, Share(done, 1))[0]


class Cuts(NamedTuple):
    """Equal cuts of the pieces' queries; the last one of a piece may be short."""

    offset: jax.Array
    """int32[P]: index of each piece's first cut."""
    count: jax.Array
    """int32[P]: cuts of each piece."""
    blocking: Blocking


class Share(NamedTuple):
    """Which cuts one loop takes."""

    first: jax.Array
    """int32[]: how many have been taken before."""
    at_once: int
    """So many in a turn; a turn that would be a quarter empty or less is taken, what is left then is not."""


def attend_cuts(
    out: jax.Array, q: jax.Array, pool_k: jax.Array, pool_v: jax.Array, pieces: Pieces, cuts: Cuts, share: Share
) -> tuple[jax.Array, jax.Array]:
    """``out`` filled for a share of the cuts, and how many have been taken then."""
    size, at_once, ends = cuts.blocking.tile, share.at_once, jnp.cumsum(cuts.count)
    attend = attend_sliding_tiles if cuts.blocking.window else attend_tiles

    def turn(index: jax.Array, out: jax.Array) -> jax.Array:
        cut = share.first + index * at_once + jnp.arange(at_once, dtype=jnp.int32)
        real = cut < ends[-1]
        piece = jnp.minimum(jnp.searchsorted(ends, cut, side="right"), ends.shape[0] - 1)
        begin = cuts.offset[piece] + (cut - ends[piece] + cuts.count[piece]) * size
        # a cut at the end of the axis is moved back, and takes nothing twice
        at = jnp.minimum(begin, q.shape[0] - size)
        entry = at[:, None] + jnp.arange(size, dtype=jnp.int32)[None, :]
        end = jnp.where(real, pieces.offset[piece] + pieces.length[piece], 0)
        mine = (entry >= begin[:, None]) & (entry < end[:, None])
        position = jnp.where(mine, pieces.position[entry], 0)
        seen = jnp.where(real, pieces.position[begin] + 1, pieces.table.shape[1] * cuts.blocking.page_size)
        tiles = Tiles(pieces.table[piece], position, seen)
        new = attend(q[entry], pool_k, pool_v, tiles, cuts.blocking)
        for i in range(at_once):
            old = jax.lax.dynamic_slice_in_dim(out, at[i], size)
            kept = jnp.where(mine[i][:, None, None], new[i], old)
            out = jax.lax.dynamic_update_slice_in_dim(out, kept, at[i], axis=0)
        return out

    turns = (ends[-1] - share.first + at_once // 4) // at_once
    return jax.lax.fori_loop(0, turns, turn, out), jnp.minimum(share.first + turns * at_once, ends[-1])
