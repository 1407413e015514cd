"""How many pages the host tier has, and what cannot be combined with it. Pure arithmetic."""

from configs.errors import ConfigError
from configs.memory import size
from configs.schema import Choice, EngineConfig, HardwareFacts


def refuse_host(config: EngineConfig) -> None:
    """Refuse a host tier where there is nothing that it could keep, and a storage without one.

    Raises:
      ConfigError: two keys contradict each other.
    """
    cache = config.cache
    if cache.host and not cache.radix:
        raise ConfigError(
            "keeps prefixes, and without cache.radix there are none",
            key="cache.host",
            value=True,
            suggestion="set cache.radix: true, or leave cache.host at false",
        )
    if cache.storage_dir is not None and not cache.host:
        raise ConfigError(
            "is filled from the host tier, and there is none",
            key="cache.storage_dir",
            value=cache.storage_dir,
            suggestion="set cache.host: true",
        )


def decide_host(
    config: EngineConfig, hardware: HardwareFacts, num_pages: int, a_page: int, used_bytes: int
) -> tuple[int, tuple[Choice, ...]]:
    """Pages of the host tier, 0 without one, and what to say of them.

    Args:
      config: The launch file.
      hardware: Host memory counts as it is before anything is loaded.
      num_pages: Of the device.
      a_page: Its bytes.
      used_bytes: Of host memory, taken by weights and KV pages where the device is the host.

    Raises:
      ConfigError: they do not fit host memory.
    """
    cache = config.cache
    if not cache.host:
        return 0, ()
    if cache.host_bytes:
        pages, key, reason = cache.host_bytes // a_page, "cache.host_bytes", f"{size(cache.host_bytes)}, as configured"
    else:
        pages, key = int(num_pages * cache.host_ratio), "cache.host_ratio"
        reason = f"{cache.host_ratio:g} times the device's pages"
    free = max(hardware.host_memory_bytes - used_bytes, 0)
    value = cache.host_bytes or cache.host_ratio
    if pages < 1:
        raise ConfigError(f"is less than a page of {size(a_page)}", key=key, value=value)
    if pages * a_page > free:
        message = f"the host tier would take {size(pages * a_page)}, and {size(free)} are free"
        raise ConfigError(message, key=key, value=value, suggestion="make it smaller")
    choices = [Choice("cache.host", pages, f"pages in host memory: {reason}; {cache.host_write_policy}")]
    if cache.storage_dir is not None:
        reason = f"at most {size(cache.storage_bytes)}; prefetch {cache.storage_prefetch}"
        choices.append(Choice("cache.storage_dir", cache.storage_dir, reason))
    return pages, tuple(choices)
