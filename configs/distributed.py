"""What several hosts that are one engine must have in common, and what each follows of a launch file. Pure."""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import structs

from configs.errors import ConfigError
from configs.schema import Distributed, EngineConfig, HardwareFacts, Observe, Serving

TICKS: Final = 1
"""Added to the coordinator's port: where host 0 broadcasts Ticks."""
LIFE: Final = 2
"""Added to it: where the launchers hear of each other."""


def refuse_distributed(config: EngineConfig) -> None:
    """Refuse what several hosts cannot be, or cannot do alike yet.

    Raises:
      ConfigError: with what to do instead.
    """
    distributed, parallel = config.distributed, config.parallel
    if distributed.hosts == 1:
        if distributed.rank:
            raise _refused("there is one host, number 0", "rank", distributed.rank, "set distributed.hosts too")
        return
    if distributed.rank >= distributed.hosts:
        what = f"the hosts are numbered from 0 to {distributed.hosts - 1}"
        raise _refused(what, "rank", distributed.rank, "give each host a number of its own")
    split_address(distributed)
    if parallel.devices % distributed.hosts:
        what = f"each host has an equal part of the stages × expert × tensor = {parallel.devices} devices"
        raise _refused(what, "hosts", distributed.hosts, f"choose a divisor of {parallel.devices}")
    for key, value, wanted, instead in (
        ("parallel.replicas", parallel.replicas, 1, "start a service for each replica, behind a gateway"),
        ("parallel.stages", parallel.stages, 1, "set parallel.tensor or parallel.expert over the hosts"),
        ("cache.host", config.cache.host, False, "leave it off: a host tier is of one host's memory"),
        ("cache.storage_dir", config.cache.storage_dir, None, "leave it off: a storage is of one host's files"),
    ):
        if value != wanted:
            raise ConfigError("is not supported over several hosts yet", key=key, value=value, suggestion=instead)


def split_address(distributed: Distributed) -> tuple[str, int]:
    """Host and port of the coordinator.

    Raises:
      ConfigError: it is missing, or is no such address.
    """
    host, _, port = (distributed.coordinator or "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= 65_535 - LIFE:
        raise _refused(
            "several hosts need HOST:PORT of host 0",
            "coordinator",
            distributed.coordinator,
            f"as in 10.0.0.1:29500; a port up to {65_535 - LIFE}, as the two that follow are taken, too",
        )
    return host, int(port)


def address(distributed: Distributed, beyond: int) -> str:
    """The ZeroMQ address of host 0 whose port lies ``beyond`` the coordinator's."""
    host, port = split_address(distributed)
    return f"tcp://{host}:{port + beyond}"


def listening(distributed: Distributed, beyond: int) -> str:
    """What host 0 binds for ``address``: every interface, as jax's coordinator does."""
    return f"tcp://*:{split_address(distributed)[1] + beyond}"


def for_host(config: EngineConfig) -> EngineConfig:
    """The launch file as this host follows it: host 0 alone writes files and publishes, since all would say the same.

    Traces of the device are each host's own, in a folder of its own.
    """
    rank = config.distributed.rank
    if not rank:
        return config
    observe = config.observe
    folder = None if observe.profiler_dir is None else f"{observe.profiler_dir.rstrip('/')}/host{rank}"
    return structs.replace(
        config,
        observe=structs.replace(
            observe,
            record=None,
            step_records=False,
            kv_events_endpoint=None,
            kv_events_replay_endpoint=None,
            kv_metrics_endpoint=None,
            request_lifecycle=False,
            profiler_dir=folder,
        ),
    )


def common(config: EngineConfig) -> EngineConfig:
    """What the hosts must have in common, with the defaults for all else. It holds no key and no password."""
    return structs.replace(
        config,
        model=structs.replace(config.model, source="-", name=None, aliases=(), cache_dir="auto"),
        distributed=structs.replace(config.distributed, rank=0, coordinator=None),
        serving=Serving(),
        observe=Observe(),
    )


def difference(host_0: EngineConfig, other: EngineConfig) -> str | None:
    """The first key of two ``common`` configurations that differs, and how."""
    ours, theirs = (msgspec.to_builtins(config) for config in (host_0, other))
    for section, values in ours.items():
        for key, value in values.items():
            if theirs[section][key] != value:
                return f"{section}.{key} is {value} on host 0 and {theirs[section][key]} there"
    return None


def together(hosts: Sequence[HardwareFacts]) -> HardwareFacts:
    """The machine that all hosts are: everywhere as much memory as where there is least.

    On a CPU memory is of a host, and theirs add up; on other devices it is of a device.

    Raises:
      ConfigError: they are of different kinds.
    """
    first = hosts[0]
    for rank, facts in enumerate(hosts):
        if (facts.platform, facts.device_kind) != (first.platform, first.device_kind):
            what = f"host {rank} has {facts.device_kind} and host 0 has {first.device_kind}"
            raise _refused(what, "hosts", len(hosts), "use hosts that are alike")
    device = min(facts.memory_bytes for facts in hosts)
    return structs.replace(
        first,
        memory_bytes=device * (len(hosts) if first.platform == "cpu" else 1),
        host_memory_bytes=min(facts.host_memory_bytes for facts in hosts),
    )


def _refused(what: str, key: str, value: object, suggestion: str) -> ConfigError:
    return ConfigError(what, key=f"distributed.{key}", value=value, suggestion=suggestion)
