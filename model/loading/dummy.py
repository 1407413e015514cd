"""Random weights of any shape, made faster than a disk could deliver them."""

from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from configs.errors import ConfigError

_POOL = 1_048_573
"""Distinct values; a prime, so that rows of a power of two do not repeat each other."""


class DummyCheckpoint:
    """Normal values of variance 1 / columns; the vectors that scale a norm are ones.

    Every tensor is a stretch of one pool of values, which begins where its name says: the same seed and names give
    the same weights, in whatever order they are read.
    """

    __slots__ = ("_pool", "_shapes")

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
        """Draw the pool (about 10 ms)."""
        self._shapes = dict(shapes)
        self._pool = np.random.default_rng(seed).standard_normal(_POOL, np.float32)

    def names(self) -> Sequence[str]:
        """The names that were given."""
        return tuple(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that was given."""
        if name not in self._shapes:
            raise ConfigError(f"the dummy weights have no tensor {name}", key="model.load_format")
        return self._shapes[name]

    def read(self, name: str) -> NDArray[Any]:
        """bfloat16 values."""
        shape = self.shape(name)
        if name.endswith("norm.weight"):
            return np.ones(shape, ml_dtypes.bfloat16)
        scaled = (self._pool / np.sqrt(shape[-1], dtype=np.float32)).astype(ml_dtypes.bfloat16)
        return np.resize(np.roll(scaled, -(crc32(name.encode()) % _POOL)), shape)
