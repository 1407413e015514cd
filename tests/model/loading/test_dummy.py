"""Random weights: the same for the same seed and name, of the size of real ones."""

import numpy as np
import pytest

from configs.errors import ConfigError
from model.loading.dummy import DummyCheckpoint

SHAPES = {"a.weight": (512, 1024), "b.weight": (512, 1024), "wide.weight": (3000, 700), "x.norm.weight": (64,)}


def test_the_same_seed_gives_the_same_weights_in_any_order():
    first, second = DummyCheckpoint(SHAPES, 7), DummyCheckpoint(SHAPES, 7)
    forward = {name: first.read(name) for name in SHAPES}
    for name in reversed(SHAPES):
        np.testing.assert_array_equal(second.read(name), forward[name])
    assert (DummyCheckpoint(SHAPES, 8).read("a.weight") != forward["a.weight"]).mean() > 0.9


def test_matrices_have_the_variance_of_one_over_their_columns_and_norms_are_ones():
    checkpoint = DummyCheckpoint(SHAPES, 0)
    for name in ("a.weight", "wide.weight"):
        read = checkpoint.read(name).astype(np.float32)
        assert read.shape == SHAPES[name]
        assert np.isclose(read.std() * np.sqrt(SHAPES[name][1]), 1, atol=0.01)
    np.testing.assert_array_equal(checkpoint.read("x.norm.weight").astype(np.float32), np.ones(64))


def test_two_tensors_and_two_rows_differ():
    checkpoint = DummyCheckpoint(SHAPES, 0)
    a, b = checkpoint.read("a.weight"), checkpoint.read("b.weight")
    assert (a != b).mean() > 0.9
    assert len(np.unique(checkpoint.read("wide.weight").astype(np.float32), axis=0)) == 3000


def test_an_unknown_tensor_is_named():
    with pytest.raises(ConfigError, match="no tensor nope"):
        DummyCheckpoint(SHAPES, 0).read("nope")
