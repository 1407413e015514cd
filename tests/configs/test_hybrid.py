"""Whether sliding layers get pages of their own, how many, and what the start says of it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.hybrid import least_window_pages, needed_pages
from configs.memory import memory_plan, page_bytes
from configs.resolve import resolve
from configs.schema import Cache, EngineConfig, Model, ModelFacts, Resolved
from tests.configs.facts import SMOLLM2, cpu

# document: M-6, O-25, O-26

GEMMA = ModelFacts(
    architecture="gemma3",
    num_layers=18,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    hidden_size=640,
    vocab_size=262144,
    context_length=32768,
    num_parameters=268_098_176,
    dtype="bfloat16",
    sliding_layers=15,
    sliding_window=512,
)
WEIGHTS = 10**9


def resolved(cache: Cache, model: ModelFacts = GEMMA, context_length: int = 4096) -> Resolved:
    config = EngineConfig(model=Model(source="x", context_length=context_length), cache=cache)
    return resolve(config, "gemma", cpu(), model, WEIGHTS)


def reason(one: Resolved, key: str) -> tuple[object, str]:
    [choice] = [choice for choice in one.choices if choice.key == key]
    return choice.value, choice.reason


@given(window=st.integers(1, 40), page_size=st.integers(1, 9))
def test_a_token_behind_a_page_border_sees_only_the_needed_pages_and_the_oldest_of_them(
    window: int, page_size: int
) -> None:
    border = 100 * page_size
    oldest = border - window + 1
    assert oldest // page_size == 100 - needed_pages(window, page_size)
    assert least_window_pages(window, page_size, 1) == needed_pages(window, page_size) + 2


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.8, 1.0])
def test_the_ratio_divides_the_memory(ratio: float) -> None:
    one = resolved(Cache(memory_fraction=0.1, swa_full_tokens_ratio=ratio))
    assert one.window == 512
    assert one.window_pages == int(one.num_pages * ratio)
    a_page = page_bytes(GEMMA, one.page_size, one.dtype, 1)
    spent = one.num_pages * a_page * 3 / 18 + one.window_pages * a_page * 15 / 18
    room = (cpu().memory_bytes - WEIGHTS) * 0.1
    assert room - 2 * a_page < spent <= room
    full = resolved(Cache(memory_fraction=0.1, hybrid=False))
    assert full.window_pages == 0
    assert (one.num_pages > full.num_pages) == (ratio < 1)


def test_the_window_group_holds_at_least_what_one_request_needs_and_at_most_as_many_pages_as_there_are() -> None:
    small = resolved(Cache(max_total_tokens=4096, swa_full_tokens_ratio=0.01))
    assert small.window_pages == least_window_pages(512, 16, small.depth)
    assert resolved(Cache(max_total_tokens=256)).window_pages == 256 // 16


def test_the_cache_of_hybrid_pools_is_the_sliding_window_kind() -> None:
    assert resolved(Cache()).cache_family == "sliding-window radix"
    assert resolved(Cache(radix=False)).cache_family == "sliding-window chunk"
    assert resolved(Cache(hybrid=False)).cache_family == "radix"
    assert reason(resolved(Cache()), "cache.hybrid") == (
        True,
        "15 of 18 layers see 512 tokens, and pages behind that are freed",
    )


@pytest.mark.parametrize(
    ("cache", "changes", "context_length", "why"),
    [
        (Cache(hybrid=False), {}, 4096, "as configured"),
        (Cache(), {"sliding_layers": 18}, 4096, "no layer sees more"),
        (Cache(), {}, 512, "holds the whole context"),
    ],
)
def test_pools_that_are_not_hybrid_say_why(
    cache: Cache, changes: dict[str, int], context_length: int, why: str
) -> None:
    one = resolved(cache, msgspec.structs.replace(GEMMA, **changes), context_length)
    assert (one.window, one.window_pages, one.cache_family) == (0, 0, "radix")
    value, said = reason(one, "cache.hybrid")
    assert value is False
    assert why in said


def test_a_model_without_sliding_layers_hears_nothing_of_it() -> None:
    one = resolved(Cache(), SMOLLM2)
    assert one.window_pages == 0
    assert "cache.hybrid" not in {choice.key for choice in one.choices}


def test_hybrid_pools_and_a_host_tier_are_refused_together() -> None:
    with pytest.raises(ConfigError, match="one page group") as caught:
        resolved(Cache(host=True))
    assert "cache.hybrid: false" in str(caught.value)


def test_the_memory_plan_says_what_each_group_takes_and_what_is_saved() -> None:
    one = resolved(Cache(max_total_tokens=16_000, swa_full_tokens_ratio=0.1))
    plan = "\n".join(memory_plan(one, GEMMA, WEIGHTS, cpu(), 1))
    assert "KV pages         70.3 MiB, 75% less than 281 MiB without a window" in plan
    assert "full layers      46.9 MiB: 1,000 pages of 16 = 16,000 tokens" in plan
    assert "sliding layers   23.4 MiB: 100 pages = 1,600 tokens; a request keeps about 512" in plan
