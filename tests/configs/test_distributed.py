"""Several hosts in a launch file: what is refused, what they have in common, what each follows."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from configs.distributed import (
    address,
    common,
    difference,
    for_host,
    listening,
    refuse_distributed,
    split_address,
    together,
)
from configs.errors import ConfigError
from configs.resolve import refuse_unsupported
from configs.schema import Cache, Distributed, EngineConfig, HardwareFacts, Model, Observe, Parallel, Scheduler, Serving

COORDINATOR = "10.0.0.1:29500"
TWO = EngineConfig(
    model=Model(source="/models/one"),
    parallel=Parallel(tensor=4),
    distributed=Distributed(hosts=2, rank=1, coordinator=COORDINATOR),
)
H100 = HardwareFacts(
    platform="gpu", device_kind="H100", num_devices=16, memory_bytes=80 * 10**9, host_memory_bytes=10**12
)


def distributed(**fields: object) -> EngineConfig:
    return structs.replace(TWO, distributed=structs.replace(TWO.distributed, **fields))


def test_what_two_hosts_can_do_is_not_refused() -> None:
    refuse_unsupported(TWO)
    refuse_unsupported(distributed(hosts=1, rank=0, coordinator=None))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (distributed(hosts=1), "distributed.rank"),
        (distributed(rank=2), "distributed.rank"),
        (distributed(hosts=3), "distributed.hosts"),
        (distributed(coordinator=None), "distributed.coordinator"),
        (distributed(coordinator="10.0.0.1"), "distributed.coordinator"),
        (distributed(coordinator=":29500"), "distributed.coordinator"),
        (distributed(coordinator="here:65534"), "distributed.coordinator"),
        (distributed(coordinator="here:http"), "distributed.coordinator"),
        (structs.replace(TWO, parallel=Parallel(tensor=4, replicas=2)), "parallel.replicas"),
        (structs.replace(TWO, parallel=Parallel(tensor=2, stages=2)), "parallel.stages"),
        (structs.replace(TWO, cache=Cache(host=True)), "cache.host"),
        (structs.replace(TWO, cache=Cache(storage_dir="/pages")), "cache.storage_dir"),
    ],
)
def test_what_they_cannot_do_is_refused_at_start_with_something_to_do_instead(config: EngineConfig, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_distributed(config)
    assert caught.value.key == key
    assert caught.value.suggestion


@given(st.sampled_from(["10.0.0.1", "node-3.cluster"]), st.integers(1, 65_533))
def test_an_address_comes_apart_as_it_was_put_together(host: str, port: int) -> None:
    there = Distributed(hosts=2, coordinator=f"{host}:{port}")
    assert split_address(there) == (host, port)
    assert address(there, 1) == f"tcp://{host}:{port + 1}"
    assert listening(there, 2) == f"tcp://*:{port + 2}"


def test_host_0_follows_the_launch_file_as_it_is_and_the_others_write_and_publish_nothing() -> None:
    observe = Observe(
        record="run",
        step_records=True,
        kv_events_endpoint="tcp://*:5557",
        kv_metrics_endpoint="tcp://*:5558",
        profiler_dir="/traces/",
        request_lifecycle=True,
    )
    config = structs.replace(TWO, observe=observe)
    first = structs.replace(config, distributed=structs.replace(TWO.distributed, rank=0))
    assert for_host(first) == first
    followed = for_host(config).observe
    assert followed == Observe(profiler_dir="/traces/host1")


@pytest.mark.parametrize(
    "other",
    [
        structs.replace(TWO, distributed=structs.replace(TWO.distributed, rank=0, coordinator="localhost:29500")),
        structs.replace(TWO, model=Model(source="/elsewhere", cache_dir="/cache", name="mine")),
        structs.replace(TWO, serving=Serving(port=1234, api_key="secret"), observe=Observe(log_level="debug")),
    ],
)
def test_what_is_a_host_s_own_makes_no_difference_and_no_key_leaves_it(other: EngineConfig) -> None:
    assert difference(common(TWO), common(other)) is None
    assert b"secret" not in msgspec.msgpack.encode(common(other))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (structs.replace(TWO, cache=Cache(page_size=32)), "cache.page_size is auto on host 0 and 32 there"),
        (structs.replace(TWO, scheduler=Scheduler(order="lpm")), "scheduler.order is fcfs on host 0 and lpm there"),
        (structs.replace(TWO, model=Model(source="x", dtype="float32")), "model.dtype is auto on host 0 and float32"),
        (distributed(timeout_s=5), "distributed.timeout_s is 30.0 on host 0 and 5"),
    ],
)
def test_a_difference_is_named(other: EngineConfig, said: str) -> None:
    assert said in (difference(common(TWO), common(other)) or "")


def test_the_hosts_together_have_of_each_device_what_the_poorest_has() -> None:
    poor = structs.replace(H100, memory_bytes=70 * 10**9, host_memory_bytes=10**11)
    both = together([H100, poor])
    assert (both.memory_bytes, both.host_memory_bytes) == (70 * 10**9, 10**11)
    assert together([poor, H100]) == both


def test_on_a_cpu_the_memory_of_the_hosts_adds_up() -> None:
    cpus = [structs.replace(H100, platform="cpu", memory_bytes=size) for size in (8, 6, 7)]
    assert together(cpus).memory_bytes == 18
    assert together(cpus[:1]) == cpus[0]


def test_hosts_of_different_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="host 1 has A100 and host 0 has H100"):
        together([H100, structs.replace(H100, device_kind="A100")])
