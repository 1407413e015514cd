import gc
import logging

import pytest

from configs.gc_pauses import GcPauses, watch

# document: M-19


def test_only_long_collections_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([1.0, 1.05, 2.0, 2.5])
    pauses = GcPauses(0.1, lambda: next(times))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            pauses("start", {"generation": 2})
            pauses("stop", {"generation": 2})
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "a garbage collection (generation 2) took 0.500 s"
    ]


def test_a_limit_of_zero_watches_nothing() -> None:
    before = list(gc.callbacks)
    watch(0)
    assert gc.callbacks == before
    watch(100)
    assert len(gc.callbacks) == len(before) + 1
    gc.callbacks.pop()
