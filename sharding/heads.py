"""How attention heads are dealt over the tensor axis, as a pure table.

KV heads that do not divide are repeated r = tp / gcd(tp, KV) times, and the query heads of one KV head are
dealt over its copies; copies that come out short are filled with zero heads.
"""

from dataclasses import dataclass
from math import gcd

ZERO_HEAD = -1


@dataclass(slots=True, frozen=True)
class HeadLayout:
    """Which checkpoint head stands at each place of the sharded arrays; shards are contiguous."""

    query: tuple[int, ...]
    """Checkpoint query head, or ZERO_HEAD, for each of ``num_heads`` places."""
    kv: tuple[int, ...]
    """Checkpoint KV head for each of ``num_kv_heads`` places."""

    @property
    def num_heads(self) -> int:
        """Query places on all shards together."""
        return len(self.query)

    @property
    def num_kv_heads(self) -> int:
        """KV places on all shards together."""
        return len(self.kv)

    @property
    def group(self) -> int:
        """Query heads that share one KV place."""
        return self.num_heads // self.num_kv_heads


def head_layout(num_heads: int, num_kv_heads: int, tensor: int) -> HeadLayout:
    """Deal ``num_heads`` query heads and ``num_kv_heads`` KV heads over ``tensor`` shards.

    SmolLM2 (9, 3) gives 12, 12 and 24 query places at tensor 2, 4 and 8.
    """
    copies = tensor // gcd(tensor, num_kv_heads)
    group = num_heads // num_kv_heads
    width = -(-group // copies)
    query: list[int] = []
    for kv in range(num_kv_heads):
        members = list(range(kv * group, (kv + 1) * group))
        members += [ZERO_HEAD] * (copies * width - group)
        # deal like cards, so that zero heads spread over the copies
        query += [head for copy in range(copies) for head in members[copy::copies]]
    return HeadLayout(tuple(query), tuple(kv for kv in range(num_kv_heads) for _ in range(copies)))
