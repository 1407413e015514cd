"""Rows of a weight dealt over the shards of a mesh, and gathered again."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sharding.heads import ZERO_HEAD

Array = np.ndarray[Any, Any]


def deal(rows: Array, heads: tuple[int, ...], head_dim: int) -> Array:
    """Rows of the heads in the given order; ZERO_HEAD gives zero rows."""
    by_head = rows.reshape(-1, head_dim, *rows.shape[1:])
    dealt = by_head[np.maximum(heads, 0)]
    dealt[np.asarray(heads) == ZERO_HEAD] = 0
    return dealt.reshape(-1, *rows.shape[1:])


def undeal(rows: Array, heads: tuple[int, ...], head_dim: int) -> Array:
    """The rows that ``deal`` was given; of a repeated head the first copy is taken."""
    by_head = rows.reshape(-1, head_dim, *rows.shape[1:])
    places = [heads.index(head) for head in range(max(heads) + 1)]
    return by_head[places].reshape(-1, *rows.shape[1:])


def interleave(parts: Sequence[Array], shards: int) -> Array:
    """Rows of the parts side by side within each shard: [p0 of shard 0, p1 of shard 0, p0 of shard 1, …]."""
    pieces = [np.split(part, shards) for part in parts]
    return np.concatenate([piece[shard] for shard in range(shards) for piece in pieces])


def separate(rows: Array, sizes: Sequence[int], shards: int) -> list[Array]:
    """The parts that ``interleave`` was given, which have so many rows."""
    by_shard = rows.reshape(shards, -1, *rows.shape[1:])
    edges = np.cumsum([size // shards for size in sizes])[:-1]
    return [part.reshape(-1, *rows.shape[1:]) for part in np.split(by_shard, edges, axis=1)]


def pad(x: Array, shape: tuple[int, ...]) -> Array:
    """``x`` with zeros behind, up to ``shape``."""
    return np.pad(x, [(0, want - have) for have, want in zip(x.shape, shape, strict=True)])
