"""A leaf as one mesh holds it → the same leaf as another mesh holds it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.rows import Array, deal, interleave, pad, separate, undeal
from model.spec import ModelSpec
from model.vocabulary import padded_vocab
from sharding.heads import HeadLayout, head_layout


@dataclass(slots=True, frozen=True)
class Dealing:
    """What the rows of a model's leaves depend on."""

    spec: ModelSpec
    expert: int
    tensor: int

    @property
    def shards(self) -> int:
        """Shards of what is not an expert."""
        return self.expert * self.tensor

    @property
    def heads(self) -> HeadLayout:
        """Where the heads stand."""
        return head_layout(self.spec.num_heads, self.spec.num_kv_heads, self.shards)

    @property
    def vocab(self) -> int:
        """Rows of the embedding and of the head, with padding."""
        return padded_vocab(self.spec.vocab_size, self.shards)


def relaid(name: str, leaf: Array, old: Dealing, new: Dealing) -> Array:
    """``leaf`` as ``new`` has it; heads and columns that only fill up are left out and put in."""
    spec = old.spec
    match name.split("."):
        case ["embedding" | "head"]:
            return pad(leaf[: spec.vocab_size], (new.vocab, leaf.shape[1]))
        case [*_, "attention", "qkv"]:
            return _qkv(leaf.T, old, new).T
        case [*_, "attention", "qkv_bias"]:
            return _qkv(leaf, old, new)
        case [*_, "attention", "out"]:
            return deal(undeal(leaf, old.heads.query, spec.head_dim), new.heads.query, spec.head_dim)
        case [*_, "mlp", "gate_up"]:
            return _gate_up(leaf, old.shards, new.shards)
        case [*_, "experts", "shared_gate_up"]:
            return _gate_up(leaf.T, old.shards, new.shards).T
        case [*_, "experts", "gate_up"]:
            return np.moveaxis(_gate_up(np.moveaxis(leaf, -1, 0), old.tensor, new.tensor), 0, -1)
        case _:
            return leaf


def _gate_up(rows: Array, old: int, new: int) -> Array:
    width = len(rows) // 2
    return interleave(separate(rows, (width, width), old), new)


def _qkv(rows: Array, old: Dealing, new: Dealing) -> Array:
    dim, places = old.spec.head_dim, _places(old.heads)
    dealt = separate(rows, [dim * len(heads) for heads in places], old.shards)
    parts = [undeal(part, heads, dim) for part, heads in zip(dealt, places, strict=True)]
    again = [deal(part, heads, dim) for part, heads in zip(parts, _places(new.heads), strict=True)]
    return interleave(again, new.shards)


def _places(heads: HeadLayout) -> Sequence[tuple[int, ...]]:
    return heads.query, heads.kv, heads.kv
