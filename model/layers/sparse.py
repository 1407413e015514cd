"""The weights of a mixture of experts (Shazeer et al., 2017; Fedus et al., 2021); the work is the back end's."""

from typing import NamedTuple, Protocol

import jax
from flax import nnx

from model.layers.parameter import weight
from model.spec import Experts


class SharedExpert(NamedTuple):
    """An expert that every token takes."""

    gate_up: jax.Array
    """[hidden, 2 * width], dealt like a dense feed-forward."""
    down: jax.Array
    gate: jax.Array
    """float32[hidden, 1]: its sigmoid is the expert's share."""


class ExpertWeights(NamedTuple):
    """The arrays of one mixture."""

    router: jax.Array
    """float32[hidden, experts]."""
    gate_up: jax.Array
    """[experts, hidden, 2 * width]: by shard of ``tensor`` its gate columns, then its up; bfloat16 as uint16."""
    down: jax.Array
    """[experts, width, hidden], bfloat16 as uint16."""
    shared: SharedExpert | None


class Mixed(NamedTuple):
    """What a mixture gives back."""

    out: jax.Array
    """float32[T, hidden]."""
    routed: jax.Array
    """uint32[experts]: tokens that each expert took, padding not counted."""


class Dispatch(Protocol):
    """Route the tokens of a step, send them through their experts, and add up what comes back."""

    def __call__(self, x: jax.Array, weights: ExpertWeights, experts: Experts) -> Mixed:
        """``x`` is float32[T, hidden]."""
        ...


class SparseMLP(nnx.Module):
    """Router and experts; each expert is a gated feed-forward as ``GatedMLP`` is one.

    The router is float32: two experts that score nearly alike must not change places with the dtype of the weights.
    bfloat16 experts are kept as their bits: XLA's CPU back end converts all of them to float32 before a loop that takes
    one after the other (5.3 ms against 0.3 ms for eight rows times 1024 × 1024, one of 32 experts).
    """

    def __init__(self, hidden: int, experts: Experts, dtype: str) -> None:
        self.experts = experts
        width, count = experts.width, experts.count
        stored = "uint16" if dtype == "bfloat16" else dtype
        self.router = weight((hidden, count), ("hidden", None), "float32")
        self.gate_up = weight((count, hidden, 2 * width), ("expert", "hidden", "expert_mlp"), stored)
        self.down = weight((count, width, hidden), ("expert", "expert_mlp", "hidden"), stored)
        shared = experts.shared_width
        self.shared_gate_up = weight((hidden, 2 * shared), ("hidden", "mlp"), dtype) if shared else None
        self.shared_down = weight((shared, hidden), ("mlp", "hidden"), dtype) if shared else None
        self.shared_gate = weight((hidden, 1), ("hidden", None), "float32") if shared else None

    def __call__(self, x: jax.Array, dispatch: Dispatch) -> Mixed:
        """``x`` is [T, hidden]."""
        shared = None
        if self.shared_gate_up is not None and self.shared_down is not None and self.shared_gate is not None:
            shared = SharedExpert(self.shared_gate_up[...], self.shared_down[...], self.shared_gate[...])
        weights = ExpertWeights(self.router[...], self.gate_up[...], self.down[...], shared)
        return dispatch(x, weights, experts=self.experts)
