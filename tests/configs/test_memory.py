import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.memory import kv_copies, memory_plan, page_bytes, query_places, size
from configs.resolve import resolve
from configs.schema import Cache, EngineConfig, Model, Parallel
from sharding.heads import head_layout
from tests.configs.facts import SMOLLM2, SMOLLM2_BYTES, cpu


@given(st.integers(1, 16), st.integers(1, 8), st.integers(1, 16))
def test_head_counts_are_those_of_the_sharded_layout(kv_heads: int, group: int, tensor: int) -> None:
    model = msgspec.structs.replace(SMOLLM2, num_kv_heads=kv_heads, num_heads=kv_heads * group)
    layout = head_layout(kv_heads * group, kv_heads, tensor)
    assert kv_heads * kv_copies(model, tensor) == layout.num_kv_heads
    assert query_places(model, tensor) == layout.num_heads


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 16))
def test_every_device_holds_a_whole_share_of_a_page(kv_heads: int, tensor: int, page_size: int) -> None:
    model = msgspec.structs.replace(SMOLLM2, num_kv_heads=kv_heads)
    assert page_bytes(model, page_size, "bfloat16", tensor) % tensor == 0
    assert page_bytes(model, page_size, "float32", tensor) == 2 * page_bytes(model, page_size, "bfloat16", tensor)


def test_a_token_of_smollm2_takes_23040_bytes() -> None:
    assert page_bytes(SMOLLM2, 1, "bfloat16", 1) == 2 * 30 * 3 * 64 * 2


def plan(tensor: int) -> str:
    config = EngineConfig(model=Model(source="x"), parallel=Parallel(tensor=tensor))
    resolved = resolve(config, "tiny", cpu(), SMOLLM2, SMOLLM2_BYTES)
    return "\n".join(memory_plan(resolved, SMOLLM2, SMOLLM2_BYTES, cpu(), tensor))


def test_the_plan_says_what_fits() -> None:
    text = plan(1)
    assert "257 MiB, 134.5 M parameters" in text
    assert "5,825 pages of 16 = 93,200 tokens, 22.5 KiB a token" in text
    assert "11 requests of 8,192 tokens fit at once" in text
    assert "waste" not in text


@pytest.mark.parametrize(("tensor", "waste", "query_heads"), [(2, "50%", 12), (4, "75%", 12), (8, "88%", 24)])
def test_the_plan_shows_the_waste_of_repeated_heads(tensor: int, waste: str, query_heads: int) -> None:
    text = plan(tensor)
    assert f"{waste} of the pool" in text
    assert f"9 query heads run as {query_heads}" in text


def test_the_plan_says_when_the_context_does_not_fit_the_pool() -> None:
    config = msgspec.convert({"model": {"source": "x"}, "cache": {"max_total_tokens": 1600}}, EngineConfig)
    resolved = resolve(config, "tiny", cpu(), SMOLLM2, SMOLLM2_BYTES)
    text = "\n".join(memory_plan(resolved, SMOLLM2, SMOLLM2_BYTES, cpu(), 1))
    assert "1,600 tokens; the context of 8,192 does not fit the pool" in text
    assert "0 requests of 8,192 tokens fit at once" in text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (200 * 2**20, "200 MiB"),
        (3 * 2**39, "1.5 TiB"),
        (2**60, "1048576 TiB"),
    ],
)
def test_sizes_read_well(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


def test_the_host_tier_has_a_line_of_its_own() -> None:
    # document: O-26
    config = EngineConfig(model=Model(source="x"), cache=Cache(host=True, host_ratio=1.5, max_total_tokens=3200))
    resolved = resolve(config, "tiny", cpu(), SMOLLM2, SMOLLM2_BYTES)
    assert resolved.host_pages == 300
    text = "\n".join(memory_plan(resolved, SMOLLM2, SMOLLM2_BYTES, cpu(), 1))
    assert "host pages       105 MiB of host memory: 4,800 tokens" in text
    assert "host pages" not in plan(1)
