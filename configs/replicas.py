"""What each of several engines behind one address is given of a launch file and of the machine. Pure."""

from msgspec import structs

from configs.schema import EngineConfig, HardwareFacts, Parallel


def for_replica(config: EngineConfig, replica: int, life: int = 0) -> EngineConfig:
    """The launch file as one replica follows it: what it writes and where it listens is its own.

    KV events have a rule of their own (``scheduler.kv_publisher.endpoint_of``), and KV metrics go to one place and say
    from whom. With one replica the launch file is returned as it is.

    Args:
      config: the launch file.
      replica: which one, from 0 on.
      life: how often it was started before; a recording of the life before is not written over.
    """
    if config.parallel.replicas == 1:
        return config
    observe, cache = config.observe, config.cache
    own = f"dp{replica}"
    lives = f".{life}" if life else ""
    return structs.replace(
        config,
        cache=structs.replace(cache, storage_dir=own_folder(cache.storage_dir, config.parallel, replica)),
        observe=structs.replace(
            observe,
            record=None if observe.record is None else f"{observe.record}.{own}{lives}",
            step_records_file=f"{observe.step_records_file}.{own}",
            expert_distribution_dir=own_folder(observe.expert_distribution_dir, config.parallel, replica),
            profiler_dir=own_folder(observe.profiler_dir, config.parallel, replica),
            profiler_port=None if observe.profiler_port is None else observe.profiler_port + replica,
        ),
    )


def own_folder(folder: str | None, parallel: Parallel, replica: int) -> str | None:
    """The part of a folder in which one replica writes; all of it where there is one."""
    return folder if folder is None or parallel.replicas == 1 else f"{folder.rstrip('/')}/dp{replica}"


def with_pool(config: EngineConfig, tokens: int) -> EngineConfig:
    """The launch file with a KV pool of ``tokens``: replicas are alike, whatever memory is free when each starts."""
    return structs.replace(config, cache=structs.replace(config.cache, max_total_tokens=tokens))


def share_of(hardware: HardwareFacts, sharing: int) -> HardwareFacts:
    """The part for one of ``sharing`` engines that start on this machine together.

    Devices of a GPU are an engine's own; host memory, which on a CPU is the device's, is divided.
    """
    host = hardware.host_memory_bytes // sharing
    device = hardware.memory_bytes // (sharing if hardware.platform == "cpu" else 1)
    return structs.replace(hardware, memory_bytes=device, host_memory_bytes=host)


def cores_of(cores: list[int], replicas: int, replica: int) -> list[int]:
    """The processor cores of one replica: equal parts, none twice; all of them where there are too few."""
    each = len(cores) // replicas
    return sorted(cores)[replica * each : (replica + 1) * each] if each else sorted(cores)
