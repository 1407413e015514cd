"""Experts that change places: the same logits, the same counts by expert, devices that are more even."""

import numpy as np

from model.expert_places import ExpertTable
from tests.model.harness import Row, golden, mixed, tiny_bench

PAGES = np.arange(1, 11, dtype=np.int32)


def test_experts_that_were_placed_anew_answer_as_before_and_are_counted_by_name() -> None:
    ids, expected = golden("qwen3-moe")
    bench = tiny_bench("qwen3-moe", expert=2)
    table = ExpertTable(bench.model)
    step, (at,) = mixed(bench.shapes, 64, [], [Row(ids, 0, 40, PAGES)])
    bench.logits(step)
    first = table.by_expert(np.asarray(bench.state.routed))
    # all that counts falls on the first device
    loads = np.tile(np.array([8, 7, 6, 5, 0, 0, 0, 0], np.int64), (2, 1))
    assert table.imbalance(loads) == [2.0, 2.0]
    places = [leaf.sharding for leaf in bench.leaves]
    bench.leaves = table.rebalance(loads, bench.leaves)
    assert table.imbalance(loads) == [1.0, 1.0]
    assert [leaf.sharding for leaf in bench.leaves] == places
    before = np.asarray(bench.state.routed)
    logits = bench.logits(step)[at]
    assert np.abs(logits - expected).max() <= 2e-4 * np.abs(expected).max()
    again = np.asarray(bench.state.routed) - before
    assert not np.array_equal(again, first)
    assert np.array_equal(table.by_expert(again), first)
    # what is even already stays where it is
    assert all(a is b for a, b in zip(table.rebalance(loads, bench.leaves), bench.leaves, strict=True))
