"""The back end of a step's mixtures: routes the tokens, then lets each shard do its experts, inside one ``shard_map``.

Tokens are on every shard of the mesh when they come and when they go, as between any two layers. A shard takes those
pairs of token and expert that are its own, and one sum over ``expert`` and ``tensor`` brings everything together: as
many collectives as a dense feed-forward has.
"""

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.tree_util import Partial

from model.layers.grouped import gated, sort_pairs, through_ragged_dot, through_tiles
from model.layers.sparse import Dispatch, ExpertWeights, Mixed, SharedExpert
from model.positions import Positions
from model.registry import Blueprint
from model.spec import Experts, ExpertsKind
from sharding.axes import MODEL_AXES, LogicalAxis, partition

WHOLE = PartitionSpec()


def placed(*axes: LogicalAxis | None) -> jax.Array:
    """A partition that stands where an array will; typed as that array, so that one tuple describes both."""
    return cast(jax.Array, partition(axes))


SHARED = SharedExpert(placed("hidden", "mlp"), placed("mlp", "hidden"), placed())
SPECS = ExpertWeights(
    placed(), placed("expert", "hidden", "expert_mlp"), placed("expert", "expert_mlp", "hidden"), SHARED
)


def dispatch_on(model: Blueprint, where: Positions) -> Dispatch:
    """The ``Dispatch`` of one step; padding is sent nowhere."""

    def dispatch(real: jax.Array, x: jax.Array, weights: ExpertWeights, experts: Experts) -> Mixed:
        specs = SPECS if weights.shared is not None else SPECS._replace(shared=None)
        run = jax.shard_map(
            partial(mixture, experts=experts, kind=model.experts),
            mesh=model.mesh,
            in_specs=(WHOLE, WHOLE, specs),
            out_specs=Mixed(placed(), placed("expert")),
            check_vma=False,
        )
        return run(x, real, weights)

    # a pytree whose function stays the same, so that layers alike share one trace
    return Partial(dispatch, where.row >= 0)


def mixture(x: jax.Array, real: jax.Array, weights: ExpertWeights, *, experts: Experts, kind: ExpertsKind) -> Mixed:
    """One shard's part of a mixture for ``x`` float32[T, hidden], summed over all shards; ``real`` is bool[T]."""
    here = weights.gate_up.shape[0]
    share, chosen = route(x, weights.router, experts)
    own = chosen - jax.lax.axis_index("expert") * here
    mine = (own >= 0) & (own < here) & real[:, None]
    pairs = sort_pairs(jnp.where(mine, own, here), share, here)
    through = {"tiles": through_tiles, "ragged": through_ragged_dot}[kind]
    out = through(x, pairs, weights.gate_up, weights.down)
    if weights.shared is not None:
        gate = jax.nn.sigmoid(jnp.matmul(x, weights.shared.gate))
        out = out + gate * gated(x, weights.shared.gate_up, weights.shared.down)
    return Mixed(jax.lax.psum(out, MODEL_AXES), pairs.count.astype(jnp.uint32))


def route(x: jax.Array, router: jax.Array, experts: Experts) -> tuple[jax.Array, jax.Array]:
    """Shares float32[T, k] and experts int32[T, k] of each token, best first."""
    scores = jax.nn.softmax(jnp.matmul(x, router, precision="highest"), axis=-1)
    share, chosen = jax.lax.top_k(scores, experts.per_token)
    if experts.normalise:
        share = share / jnp.sum(share, axis=-1, keepdims=True)
    return share, chosen
