"""Every ``auto`` of a launch file, decided once and with a reason; contradictions are refused here.

Pure: nothing is read but the arguments, and nothing changes the configuration afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from configs.distributed import refuse_distributed
from configs.errors import ConfigError
from configs.host_tier import decide_host, refuse_host
from configs.hybrid import Hybrid, bytes_a_full_page, count_window_pages, decide_hybrid, least_window_pages
from configs.memory import page_bytes, size
from configs.mesh_sizes import refuse_sizes
from configs.schema import CacheFamily, Choice, EngineConfig, HardwareFacts, ModelFacts, OrderName, Resolved
from configs.stages import Stages, refuse_stages, stage_parts

Dtype = Literal["float32", "bfloat16"]
Loop = Literal["normal", "overlap", "pp"]

DEFAULT_CACHE_DIR: Final = "~/.cache/radjax"
PAGE_SIZE: Final = 16
MIN_PAGES: Final = 2
MAX_PAGES: Final = 2**31 - 2
"""Page numbers cross to the device as int32, and page 0 comes on top."""

# More than a development machine can spare is rarely of use there: 2 GiB hold 93,000 tokens of SmolLM2, and the pool is
# written once at start. An explicit memory_fraction or max_total_tokens lifts this.
CPU_POOL_BYTES: Final = 2 * 2**30


@dataclass(slots=True, frozen=True)
class PlatformDefaults:
    """What ``auto`` means on one kind of device."""

    dtype: Dtype
    max_running_requests: int
    memory_fraction: float


# dtype on a CPU: the products of SmolLM2-135M take 14.0 to 15.7 ms at two rows in bfloat16 with a float32 result and
# 15.9 ms at eight; float32 takes 11.2 ms at one row, but twice the time of bfloat16 from eight rows on (jax 0.10.2, two
# cores of an AMD EPYC with AVX512-BF16, November 2026). GPU and TPU have matrix units for bfloat16.
PLATFORMS: Final[Mapping[str, PlatformDefaults]] = MappingProxyType(
    {
        "cpu": PlatformDefaults("bfloat16", 32, 0.25),
        "gpu": PlatformDefaults("bfloat16", 256, 0.88),
        "tpu": PlatformDefaults("bfloat16", 256, 0.88),
    }
)
CPU_CHUNK_TOKENS: Final = 256
CHUNK_TOKENS_BELOW: Final = ((20 * 10**9, 2048), (60 * 10**9, 4096))
"""(device memory, token budget): the first whose memory is larger than the device's counts."""
LARGEST_CHUNK_TOKENS: Final = 8192


def cache_dir(setting: str) -> str:
    """The folder that ``model.cache_dir`` means; a leading ``~`` is left for the reader to expand."""
    return DEFAULT_CACHE_DIR if setting == "auto" else setting


def weight_dtype(setting: Literal["auto", "float32", "bfloat16"], platform: str) -> Dtype:
    """What ``model.dtype`` means on a platform; asked before the weights are measured, which ``resolve`` needs."""
    return PLATFORMS[platform].dtype if setting == "auto" else setting


def resolve(
    config: EngineConfig, name: str, hardware: HardwareFacts, model: ModelFacts, weight_bytes: int, stages: Stages = ()
) -> Resolved:
    """Decide every ``auto`` of ``config`` for this model on this machine.

    Args:
      config: The launch file.
      name: The launch file's name: the served name unless ``model.name`` gives another.
      hardware: The devices, their memory taken before the weights are on them.
      model: The model's sizes.
      weight_bytes: All weights as they will be held, over all devices together.
      stages: What of that each pipeline stage has; not needed where there is one.

    Raises:
      ConfigError: Two values contradict each other, or something is not supported yet.
    """
    refuse_unsupported(config)
    _refuse_contradictions(config, hardware, model)
    dtype, dtype_reason = _dtype(config, hardware)
    context_length, context_reason = _context_length(config, model)
    page_size, page_reason = _page_size(config)
    attention, attention_reason = _attention(config)
    loop, loop_reason = _loop(config)
    depth, max_inflight = in_flight(loop, config.parallel.stages, ahead=int(config.scheduler.overlap))
    hybrid = decide_hybrid(config.cache, model, context_length)
    # the devices of a CPU share one memory
    parts = stage_parts(model, weight_bytes, () if hardware.platform == "cpu" else stages)
    each = [_pools(config, hardware, part, held, dtype, page_size, hybrid, max_inflight) for part, held in parts]
    pools = min(each, key=lambda pools: pools.num_pages)
    running, running_reason = _max_running_requests(config, PLATFORMS[hardware.platform], pools.num_pages)
    chunk_tokens, chunk_reason = _chunk_tokens(config, hardware, running, page_size)
    family, family_reason = _cache_family(config, hybrid)
    return Resolved(
        served_name=config.model.name or name,
        dtype=dtype,
        attention=attention,
        context_length=context_length,
        page_size=page_size,
        num_pages=pools.num_pages,
        host_pages=pools.host_pages,
        window=hybrid.window,
        window_pages=pools.window_pages,
        cache_family=family,
        max_running_requests=running,
        chunk_tokens=chunk_tokens,
        loop=loop,
        depth=depth,
        max_inflight=max_inflight,
        micro_batches=config.parallel.stages if loop == "pp" else 1,
        cache_dir=cache_dir(config.model.cache_dir),
        choices=(
            Choice("model.dtype", dtype, dtype_reason),
            Choice("model.attention", attention, attention_reason),
            Choice("model.context_length", context_length, context_reason),
            Choice("cache.page_size", page_size, page_reason),
            *pools.choices,
            Choice("cache family", family, family_reason),
            Choice("scheduler.max_running_requests", running, running_reason),
            Choice("scheduler.chunk_tokens", chunk_tokens, chunk_reason),
            Choice("scheduler.loop", loop, loop_reason),
            Choice("scheduler.order", *_order(config)),
        ),
    )


def in_flight(loop: Loop, stages: int, ahead: int) -> tuple[int, int]:
    """Steps that may be unread when the next is planned, and unread tokens of a request that is planned again.

    ``ahead``: steps that a pipeline has beside those that its stages work at, so that none waits for the host.
    """
    return {"normal": (0, 0), "overlap": (1, 1), "pp": (stages - 1 + ahead, ahead)}[loop]


def banner(resolved: Resolved, hardware: HardwareFacts, num_devices: int) -> list[str]:
    """What was decided, a line each, for the start of a run; the memory plan is apart."""
    devices = f"{num_devices} × {hardware.device_kind}" if num_devices > 1 else hardware.device_kind
    width = max(len(choice.key) for choice in resolved.choices)
    head = f"{resolved.served_name} in {resolved.dtype} on {devices} ({hardware.platform})"
    return [head, *(f"{one.key:<{width}}  {one.value}  ({one.reason})" for one in resolved.choices)]


# ---- what cannot be


def refuse_unsupported(config: EngineConfig) -> None:
    """Refuse what no machine and no model can make right.

    Raises:
      ConfigError: something that is not supported yet.
    """
    refuse_distributed(config)
    refuse_stages(config)
    if config.cache.radix and config.cache.eviction == "priority" and config.scheduler.priority == "off":
        raise ConfigError(
            "priorities do not count while scheduler.priority is off",
            key="cache.eviction",
            value="priority",
            suggestion="set scheduler.priority to high_first or low_first, or take lru",
        )
    refuse_host(config)


def _refuse_contradictions(config: EngineConfig, hardware: HardwareFacts, model: ModelFacts) -> None:
    wanted = config.model.context_length
    refuse_sizes(config.parallel, model, hardware.num_devices)
    if hardware.platform == "tpu" and config.parallel.replicas > 1:
        raise ConfigError(
            "the TPU runtime gives all chips of a host to one process",
            key="parallel.replicas",
            value=config.parallel.replicas,
            suggestion="leave it at 1, and start a service on each host behind a gateway",
        )
    if wanted != "auto" and wanted > model.context_length:
        raise ConfigError(
            f"the model was made for {model.context_length} tokens",
            key="model.context_length",
            value=wanted,
            suggestion=f"at most {model.context_length}, or auto",
        )
    if config.model.attention == "pallas" and hardware.platform == "cpu":
        raise ConfigError("needs a GPU", key="model.attention", value="pallas", suggestion="take xla, or auto")
    if config.observe.profiler_port is not None and not config.observe.profiler_any_interface:
        raise ConfigError(
            "JAX's profiler listens on every interface of this machine, and asks nobody who they are",
            key="observe.profiler_port",
            value=config.observe.profiler_port,
            suggestion="close the port to others and set observe.profiler_any_interface: true, or use /start_profile",
        )


# ---- one decision each: the value, and why


def _dtype(config: EngineConfig, hardware: HardwareFacts) -> tuple[Dtype, str]:
    reason = f"the default on {hardware.platform}" if config.model.dtype == "auto" else "as configured"
    return weight_dtype(config.model.dtype, hardware.platform), reason


def _attention(config: EngineConfig) -> tuple[Literal["xla", "pallas"], str]:
    if config.model.attention != "auto":
        return config.model.attention, "as configured"
    return "xla", "runs on every platform"


def _context_length(config: EngineConfig, model: ModelFacts) -> tuple[int, str]:
    if config.model.context_length != "auto":
        return config.model.context_length, "as configured"
    return model.context_length, "the model's own"


def _page_size(config: EngineConfig) -> tuple[int, str]:
    if config.cache.page_size != "auto":
        return config.cache.page_size, "as configured"
    return PAGE_SIZE, "the default"


@dataclass(slots=True, frozen=True)
class _Pools:
    """Pages of each pool, and why."""

    num_pages: int
    window_pages: int
    host_pages: int
    choices: tuple[Choice, ...]


def _pools(
    config: EngineConfig,
    hardware: HardwareFacts,
    model: ModelFacts,
    weight_bytes: int,
    dtype: Dtype,
    page_size: int,
    hybrid: Hybrid,
    max_inflight: int,
) -> _Pools:
    ratio = config.cache.swa_full_tokens_ratio
    a_page = page_bytes(model, page_size, dtype, config.parallel.shards)
    if hybrid.window:
        a_page = bytes_a_full_page(a_page, model, ratio)
    num_pages, reason = _num_pages(config, hardware, weight_bytes, a_page, page_size)
    in_host = weight_bytes + num_pages * a_page if hardware.platform == "cpu" else 0
    host_pages, host_choices = decide_host(config, hardware, num_pages, a_page, in_host)
    device = Choice("cache.max_total_tokens", num_pages * page_size, reason)
    return _Pools(
        num_pages,
        _window_pages(hybrid, num_pages, ratio, page_size, max_inflight),
        host_pages,
        (device, *hybrid.choices, *host_choices),
    )


def _num_pages(
    config: EngineConfig, hardware: HardwareFacts, weight_bytes: int, a_page: int, page_size: int
) -> tuple[int, str]:
    tokens = config.cache.max_total_tokens
    room, room_reason = _pool_bytes(config, hardware, weight_bytes)
    if tokens != "auto":
        pages, reason = tokens // page_size, "as configured"
        _refuse_too_few(pages, "cache.max_total_tokens", tokens, f"at least {MIN_PAGES * page_size} tokens")
        if pages * a_page > _free_bytes(config, hardware, weight_bytes):
            raise ConfigError(
                f"takes {size(pages * a_page)}, and {size(_free_bytes(config, hardware, weight_bytes))} are free",
                key="cache.max_total_tokens",
                value=tokens,
                suggestion=f"at most {room // a_page * page_size}, or auto",
            )
        return pages, reason
    pages = min(room // a_page, MAX_PAGES)
    _refuse_too_few(
        pages, "cache.memory_fraction", config.cache.memory_fraction, f"{size(MIN_PAGES * a_page)} are needed"
    )
    return pages, f"{room_reason}, {size(a_page)} a page"


def _refuse_too_few(pages: int, key: str, value: float | str, suggestion: str) -> None:
    if pages < MIN_PAGES:
        raise ConfigError(
            f"the KV pool would have {pages} pages, and {MIN_PAGES} is the least",
            key=key,
            value=value,
            suggestion=suggestion,
        )


def _free_bytes(config: EngineConfig, hardware: HardwareFacts, weight_bytes: int) -> int:
    """Memory beside the weights, over all devices of the mesh; CPU devices share one memory."""
    shares = 1 if hardware.platform == "cpu" else config.parallel.shards
    return max(hardware.memory_bytes * shares - weight_bytes, 0)


def _pool_bytes(config: EngineConfig, hardware: HardwareFacts, weight_bytes: int) -> tuple[int, str]:
    free = _free_bytes(config, hardware, weight_bytes)
    asked = config.cache.memory_fraction
    if asked != "auto":
        return int(free * asked), f"{asked:.0%} of {size(free)} free beside the weights, as configured"
    fraction = PLATFORMS[hardware.platform].memory_fraction
    share = int(free * fraction)
    if hardware.platform == "cpu" and share > CPU_POOL_BYTES:
        return CPU_POOL_BYTES, f"{size(CPU_POOL_BYTES)}, the default bound on cpu"
    return share, f"{fraction:.0%} of {size(free)} free beside the weights"


def _window_pages(hybrid: Hybrid, num_pages: int, ratio: float, page_size: int, max_inflight: int) -> int:
    if not hybrid.window:
        return 0
    return count_window_pages(num_pages, ratio, least_window_pages(hybrid.window, page_size, max_inflight))


def _cache_family(config: EngineConfig, hybrid: Hybrid) -> tuple[CacheFamily, str]:
    # document: O-26
    if not config.cache.radix:
        reason = "cache.radix is off, and prompts are computed in chunks: no prefix outlives its request"
        return ("sliding-window chunk" if hybrid.window else "chunk"), reason
    reason = f"cache.radix is on; prefixes, apart by adapter, key and salt, are evicted by {config.cache.eviction}"
    if hybrid.window:
        return "sliding-window radix", f"{reason}, window pages by lru"
    return "radix", f"{reason}; below it lies a host tier" if config.cache.host else reason


def _order(config: EngineConfig) -> tuple[OrderName, str]:
    order = config.scheduler.order
    if order in ("lpm", "dfs-weight") and not config.cache.radix:
        return "fcfs", f"{order} goes by cached prefixes, and cache.radix is off"
    return order, "as configured"


def _max_running_requests(config: EngineConfig, platform: PlatformDefaults, num_pages: int) -> tuple[int, str]:
    wanted, chunk = config.scheduler.max_running_requests, config.scheduler.chunk_tokens
    if wanted == "auto":
        limits = {
            "the default on this platform": platform.max_running_requests,
            "a page for each": num_pages,
            "half of scheduler.chunk_tokens": platform.max_running_requests if chunk == "auto" else chunk // 2,
        }
        reason = min(limits, key=limits.__getitem__)
        return limits[reason], reason
    if wanted > num_pages:
        raise ConfigError(
            f"the KV pool has {num_pages} pages, and each request needs one",
            key="scheduler.max_running_requests",
            value=wanted,
            suggestion=f"at most {num_pages}, or a larger cache.max_total_tokens",
        )
    return wanted, "as configured"


def _chunk_tokens(config: EngineConfig, hardware: HardwareFacts, running: int, page_size: int) -> tuple[int, str]:
    wanted = config.scheduler.chunk_tokens
    if wanted == "auto":
        default, reason = _default_chunk_tokens(hardware)
        least = 1 << (max(2 * running, page_size) - 1).bit_length()
        if least > default:
            return least, f"twice scheduler.max_running_requests of {running}, and at least a page"
        return default, reason
    for least, what in ((running, "scheduler.max_running_requests"), (page_size, "cache.page_size")):
        if wanted < least:
            raise ConfigError(
                f"is smaller than {what} ({least})",
                key="scheduler.chunk_tokens",
                value=wanted,
                suggestion=f"at least {least}, or auto",
            )
    return wanted, "as configured"


def _default_chunk_tokens(hardware: HardwareFacts) -> tuple[int, str]:
    if hardware.platform == "cpu":
        return CPU_CHUNK_TOKENS, "the default on cpu"
    budget = next(
        (budget for below, budget in CHUNK_TOKENS_BELOW if hardware.memory_bytes < below), LARGEST_CHUNK_TOKENS
    )
    return budget, f"for a device with {size(hardware.memory_bytes)}"


def _loop(config: EngineConfig) -> tuple[Loop, str]:
    # document: O-10
    if config.scheduler.loop != "auto":
        return config.scheduler.loop, "as configured"
    if config.parallel.stages > 1:
        return "pp", f"{config.parallel.stages} stages, each with a step of its own"
    if config.scheduler.overlap:
        return "overlap", "one stage and scheduler.overlap is on"
    return "normal", "one stage and scheduler.overlap is off"
