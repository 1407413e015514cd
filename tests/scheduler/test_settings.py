"""What a launch file says to the scheduler."""

import pytest
from msgspec import convert

from configs.resolve import banner, resolve
from configs.schema import EngineConfig
from scheduler.assembly import Settings, settings_from
from scheduler.token_ratio import RatioSettings
from tests.configs.facts import SMOLLM2, SMOLLM2_BYTES, cpu


def told(**sections: dict[str, object]) -> tuple[Settings, list[str]]:
    """The settings, and the lines that a start prints."""
    config = convert({"model": {"source": "here"}, **sections}, EngineConfig)
    resolved = resolve(config, "here", cpu(), SMOLLM2, SMOLLM2_BYTES)
    return settings_from(resolved, config, (2,)), banner(resolved, cpu(), 1)


def test_admission_is_strict_unless_requests_may_be_passed_over() -> None:
    assert told(scheduler={"max_passed_over": 5})[0].max_passed_over == 0
    assert told(scheduler={"admission": "skip", "max_passed_over": 5})[0].max_passed_over == 5
    assert told(scheduler={"admission": "skip"})[0].max_passed_over == 16


def test_the_budgets_of_a_launch_file_reach_the_planner() -> None:
    # document: O-19; the defaults are SGLang's, but for mixed steps
    plain, _ = told()
    assert (plain.max_prefill_tokens, plain.mixed, plain.defer_shared_tokens) == (16_384, True, 32)
    assert plain.ratio == RatioSettings(start=0.7, floor=0.14, decay_steps=600, retract_steps=20)
    ratio = {"new_token_ratio": 0.5, "new_token_ratio_floor": 0.2, "new_token_ratio_decay_steps": 7, "retract_steps": 3}
    other = {"max_prefill_tokens": 9, "mixed": False, "defer_shared_tokens": 0, "order": "random", "order_seed": 4}
    changed, _ = told(scheduler={**ratio, **other})
    assert (changed.max_prefill_tokens, changed.mixed, changed.defer_shared_tokens) == (9, False, 0)
    assert changed.ratio == RatioSettings(start=0.5, floor=0.2, decay_steps=7, retract_steps=3)
    assert (changed.order, changed.order_seed) == ("random", 4)


@pytest.mark.parametrize("order", ["lpm", "dfs-weight"])
def test_an_order_by_prefixes_without_a_cache_is_that_of_arrival_and_a_start_says_so(order: str) -> None:
    _, lines = told(scheduler={"order": order}, cache={"radix": False})
    [line] = [line for line in lines if line.startswith("scheduler.order")]
    assert line.split()[1:] == ["fcfs", *f"({order} goes by cached prefixes, and cache.radix is off)".split()]
    _, lines = told(scheduler={"order": order})
    [line] = [line for line in lines if line.startswith("scheduler.order")]
    assert line.split()[1] == order
