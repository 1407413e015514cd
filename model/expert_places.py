"""Experts that change places while the engine runs: what each has taken, and an order that evens the devices out."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from numpy.typing import NDArray

from model.registry import Blueprint
from sharding.experts import balanced, imbalance

Loads = NDArray[np.int64]


class ExpertTable:
    """Which expert stands at which place of each layer, and the leaves that follow.

    A router's column stands where its expert does, so that a step needs no table.
    """

    def __init__(self, model: Blueprint) -> None:
        assert model.spec.experts is not None, "a dense model has no experts"
        self.layers = model.spec.sparse_layers
        self.devices = model.mesh.shape["expert"]
        self.order = np.tile(np.arange(model.spec.experts.count, dtype=np.int32), (len(self.layers), 1))
        """int32[layers, places]: the expert at each place."""
        self._names = tuple(model.leaves)

    def by_expert(self, by_place: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Counts by place as counts by expert, [layers, experts]."""
        counts = np.empty_like(by_place)
        np.put_along_axis(counts, self.order, by_place, axis=1)
        return counts

    def imbalance(self, loads: Loads) -> list[float]:
        """Of each layer, under loads by expert."""
        at_places = np.take_along_axis(loads, self.order, axis=1)
        return [imbalance(layer, self.devices) for layer in at_places.tolist()]

    def rebalance(self, loads: Loads, leaves: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Leaves whose experts stand so that ``loads`` [layers, experts] fall evenly on the devices.

        They go through host memory, a leaf at a time: no program with collectives runs. Blocks for as long.
        """
        named = dict(zip(self._names, leaves, strict=True))
        at_places = np.take_along_axis(loads, self.order, axis=1).tolist()
        for row, layer in enumerate(self.layers):
            moved = np.array(balanced(at_places[row], self.devices))
            if np.array_equal(moved, np.arange(len(moved))):
                continue
            self.order[row] = self.order[row][moved]
            named |= _moved(named, f"blocks.{layer}.experts", moved)
        return tuple(named.values())


def _moved(leaves: Mapping[str, jax.Array], at: str, order: NDArray[np.int64]) -> dict[str, jax.Array]:
    """The leaves of one layer whose experts are in a new order."""

    def taken(name: str, axis: int) -> jax.Array:
        leaf = leaves[name]
        return jax.device_put(np.take(np.asarray(leaf), order, axis=axis), leaf.sharding)

    return {
        f"{at}.router": taken(f"{at}.router", 1),
        f"{at}.gate_up": taken(f"{at}.gate_up", 0),
        f"{at}.down": taken(f"{at}.down", 0),
    }
