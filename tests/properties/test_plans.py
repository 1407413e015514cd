"""Twenty pinned runs: whoever changes what the scheduler decides is told."""

import pytest

from tests.golden.make_plans import FILE, NUM_RUNS, line

PINNED = FILE.read_text().splitlines()


def test_there_is_one_line_a_run() -> None:
    assert len(PINNED) == NUM_RUNS


@pytest.mark.parametrize("seed", range(NUM_RUNS))
def test_the_scheduler_decides_as_it_did(seed: int) -> None:
    assert line(seed) == PINNED[seed], (
        "the plans of this run have changed: if that is meant, run 'python -m tests.golden.make_plans' and say why"
    )
