"""Times the grouped product of a mixture of experts: tiles against XLA's ``ragged_dot``.

    python -m tests.benchmarks.grouped_product [TOKENS PER_TOKEN EXPERTS HIDDEN WIDTH]

Tokens choose their experts evenly at random; weights are bfloat16. ``one expert`` is the same number of rows as an
expert has on average, through one expert alone: what its weights cost when nothing has to be sorted or taken apart.
"""

import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from model.layers.grouped import gated, sort_pairs, through_ragged_dot, through_tiles, tile_rows, values

SHAPES = ((2, 8, 32, 1024, 512), (32, 8, 32, 1024, 512), (256, 8, 32, 1024, 512), (256, 8, 128, 1024, 512))
ROUNDS = 5


def milliseconds(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """The best of some rounds, compiled before."""
    compiled = jax.jit(function).lower(*arguments).compile()
    compiled(*arguments).block_until_ready()
    times: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        compiled(*arguments).block_until_ready()
        times.append(time.perf_counter() - began)
    return min(times) * 1e3


def measure(tokens: int, per_token: int, experts: int, hidden: int, width: int) -> str:
    """One line of figures."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> jax.Array:
        drawn = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16) / 32
        return jax.jit(lambda w: jax.lax.bitcast_convert_type(w, jnp.uint16))(drawn)

    x = jnp.asarray(rng.standard_normal((tokens, hidden)), jnp.float32)
    chosen = jnp.asarray(np.stack([rng.permutation(experts)[:per_token] for _ in range(tokens)]), jnp.int32)
    share = jnp.full(chosen.shape, 1 / per_token, jnp.float32)
    gate_up, down = weights(experts, hidden, 2 * width), weights(experts, width, hidden)

    def over(
        product: Callable[..., jax.Array],
    ) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]:
        return lambda x, chosen, share, gate_up, down: product(x, sort_pairs(chosen, share, experts), gate_up, down)

    tiles, ragged = (
        milliseconds(over(product), x, chosen, share, gate_up, down) for product in (through_tiles, through_ragged_dot)
    )
    rows = jnp.ones((max(2, tokens * per_token // experts), hidden), jnp.float32)
    alone = milliseconds(lambda x, g, d: gated(x, values(g), values(d)), rows, gate_up[0], down[0])
    active, tile = len(np.unique(np.asarray(chosen))), tile_rows(chosen.size, experts)
    return (
        f"{tokens:>5} tokens × {per_token} of {experts:>3} experts, {hidden} × {width}: {active:>3} active, tiles of "
        f"{tile:>2} {tiles:8.2f} ms, ragged_dot {ragged:8.1f} ms, one expert {alone:6.2f} ms"
    )


if __name__ == "__main__":
    given = tuple(map(int, sys.argv[1:]))
    for shape in (given,) if given else SHAPES:
        print(measure(*shape), flush=True)
