"""What each replica is given."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from configs.replicas import cores_of, for_replica, share_of, with_pool
from configs.schema import Cache, EngineConfig, HardwareFacts, Model, Observe, Parallel

HARDWARE = HardwareFacts(platform="cpu", device_kind="cpu", num_devices=1, memory_bytes=1000, host_memory_bytes=900)


def config(replicas: int) -> EngineConfig:
    return EngineConfig(
        model=Model(source="x"),
        parallel=Parallel(replicas=replicas),
        cache=Cache(host=True, storage_dir="/kv/"),
        observe=Observe(
            record="run.rec",
            profiler_dir="/traces",
            profiler_port=9012,
            profiler_any_interface=True,
            expert_distribution_dir="/experts",
        ),
    )


def test_a_single_engine_follows_the_launch_file_as_it_stands() -> None:
    assert for_replica(config(1), 0) == config(1)


def test_no_two_lives_of_replicas_write_to_or_listen_at_the_same_place() -> None:
    for places in (
        lambda one: one.observe.record,
        lambda one: one.observe.step_records_file,
        lambda one: one.observe.profiler_dir,
        lambda one: one.observe.expert_distribution_dir,
        lambda one: one.observe.profiler_port,
        lambda one: one.cache.storage_dir,
    ):
        assert len({places(for_replica(config(3), replica)) for replica in range(3)}) == 3
    assert for_replica(config(3), 1).observe.record == "run.rec.dp1"
    assert for_replica(config(3), 1, life=2).observe.record == "run.rec.dp1.2"
    assert for_replica(config(3), 1).cache.storage_dir == "/kv/dp1"


def test_what_is_not_asked_for_is_not_asked_for_of_a_replica() -> None:
    own = for_replica(EngineConfig(model=Model(source="x"), parallel=Parallel(replicas=2)), 1)
    assert (own.observe.record, own.observe.profiler_dir, own.observe.profiler_port) == (None, None, None)
    assert own.cache.storage_dir is None


def test_later_replicas_are_given_the_pool_of_the_first() -> None:
    assert with_pool(config(2), 4096).cache.max_total_tokens == 4096
    assert with_pool(config(2), 4096).cache.storage_dir == config(2).cache.storage_dir


def test_memory_of_a_cpu_is_shared_and_devices_of_a_gpu_are_not() -> None:
    shared = share_of(HARDWARE, 2)
    assert (shared.memory_bytes, shared.host_memory_bytes) == (500, 450)
    shared = share_of(structs.replace(HARDWARE, platform="gpu"), 2)
    assert (shared.memory_bytes, shared.host_memory_bytes) == (1000, 450)


@given(cores=st.sets(st.integers(0, 255), min_size=1, max_size=64), replicas=st.integers(1, 8))
def test_cores_are_dealt_out_evenly_or_left_to_all(cores: set[int], replicas: int) -> None:
    dealt = [cores_of(list(cores), replicas, replica) for replica in range(replicas)]
    assert all(dealt)
    assert len({len(part) for part in dealt}) == 1
    if len(cores) >= replicas:
        assert len([core for part in dealt for core in part]) == len({core for part in dealt for core in part})
    else:
        assert all(part == sorted(cores) for part in dealt)
