"""Puts an engine together from its parts."""

import secrets
import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from configs.hybrid import needed_pages
from configs.schema import (
    Check,
    EngineConfig,
    Eviction,
    HostWritePolicy,
    OrderName,
    Parallel,
    Resolved,
    StoragePrefetch,
)
from model.interface import Runner, Shapes
from scheduler.batch_builder import BatchBuilder
from scheduler.cache_listener import CacheListener
from scheduler.cache_tiers import CacheTiers
from scheduler.channel import Channel
from scheduler.completions import Mailbox
from scheduler.control import Control
from scheduler.copies import Copies, NoCopies
from scheduler.deadlines import TimeLimits
from scheduler.draft import Budgets
from scheduler.engine import Engine, Policy
from scheduler.eviction import POLICIES
from scheduler.gates import Limits
from scheduler.host_copies import HostCopies
from scheduler.host_tier import HostTier
from scheduler.hybrid_cache import HybridCache
from scheduler.kv_cache import KVCache
from scheduler.lookout import Lookout
from scheduler.observe import Monitor, Observer
from scheduler.operations import Operations
from scheduler.order import ORDERS, Order, urgent_first
from scheduler.page_allocator import PageAllocator
from scheduler.page_owner import PageOwner
from scheduler.pause import Pause
from scheduler.port import ChannelPort, OpenPort, Port
from scheduler.preemption import Preemption
from scheduler.prefix_cache import prefix_cache
from scheduler.priority import Direction
from scheduler.radix_cache import RadixCache
from scheduler.results import Results
from scheduler.roster import Roster
from scheduler.slots import Slots
from scheduler.step_ring import StepRing
from scheduler.storage_tier import StorageTier
from scheduler.token_ratio import RatioSettings, TokenRatio
from scheduler.tuning import Tuning, Values
from scheduler.window_pages import WindowPages


class Settings(Struct, frozen=True, kw_only=True):
    """All that decides how an engine with a given runner behaves; a recording begins with it."""

    context_length: int
    num_pages: int
    """Usable pages; page 0 is not among them."""
    max_rows: int
    """Rows that one plan may hold."""
    depth: int
    max_inflight: int
    """Unread sampled tokens that a request may have when it is planned again."""
    micro_batches: int = 1
    """Steps among which decode rows are dealt, to be under way at the same time."""
    eos_ids: tuple[int, ...]
    reuse: bool = True
    """Whether prefixes are cached."""
    window_pages: int = 0
    """Usable pages of the window group; 0 where all layers share one group."""
    host_pages: int = 0
    """Pages of the host tier; 0 without one."""
    host_write_policy: HostWritePolicy = "write_through"
    host_load_threshold: int = 16
    storage: bool = False
    """Whether a storage is attached from the start."""
    storage_prefetch: StoragePrefetch = "timeout"
    storage_prefetch_timeout_ns: int = 2_000_000_000
    storage_prefetch_threshold: int = 256
    eviction: Eviction = "lru"
    order: OrderName = "fcfs"
    order_seed: int = 0
    max_passed_over: int = 0
    """0 is strict admission."""
    max_prefill_tokens: int = 16_384
    mixed: bool = True
    defer_shared_tokens: int = 32
    conservativeness: float = 1.0
    ratio: RatioSettings = RatioSettings()
    max_queued: int = 4096
    max_queued_tokens: int = 2**31 - 1
    priority: Direction = "off"
    preemption_threshold: int = 10
    max_preemptions: int = 3
    waiting_timeout_ns: int = 0
    running_timeout_ns: int = 0
    check: Check = "idle"
    adapters: tuple[str, ...] = ()
    """Adapters that are loaded; requests for others are refused."""
    parallel: Parallel = Parallel()
    """The mesh of the runner, and how many such engines there are."""


def settings_from(resolved: Resolved, config: EngineConfig, eos_ids: tuple[int, ...]) -> Settings:
    """What a launch file says to the scheduler."""
    return Settings(
        context_length=resolved.context_length,
        num_pages=resolved.num_pages,
        max_rows=resolved.max_running_requests,
        depth=resolved.depth,
        max_inflight=resolved.max_inflight,
        micro_batches=resolved.micro_batches,
        eos_ids=eos_ids,
        reuse=resolved.cache_family.endswith("radix"),
        window_pages=resolved.window_pages,
        eviction=config.cache.eviction,
        host_pages=resolved.host_pages,
        host_write_policy=config.cache.host_write_policy,
        host_load_threshold=config.cache.host_load_threshold,
        storage=resolved.host_pages > 0 and config.cache.storage_dir is not None,
        storage_prefetch=config.cache.storage_prefetch,
        storage_prefetch_timeout_ns=round(config.cache.storage_prefetch_timeout_s * 1e9),
        storage_prefetch_threshold=config.cache.storage_prefetch_threshold,
        order=config.scheduler.order,
        order_seed=config.scheduler.order_seed,
        max_passed_over=config.scheduler.max_passed_over if config.scheduler.admission == "skip" else 0,
        max_prefill_tokens=config.scheduler.max_prefill_tokens,
        mixed=config.scheduler.mixed,
        defer_shared_tokens=config.scheduler.defer_shared_tokens,
        conservativeness=config.scheduler.conservativeness,
        ratio=RatioSettings(
            start=config.scheduler.new_token_ratio,
            floor=config.scheduler.new_token_ratio_floor,
            decay_steps=config.scheduler.new_token_ratio_decay_steps,
            retract_steps=config.scheduler.retract_steps,
        ),
        max_queued=config.scheduler.max_queued_requests,
        max_queued_tokens=config.scheduler.max_queued_tokens,
        priority=config.scheduler.priority,
        preemption_threshold=config.scheduler.preemption_threshold,
        max_preemptions=config.scheduler.max_preemptions,
        waiting_timeout_ns=round(config.scheduler.waiting_timeout_s * 1e9),
        running_timeout_ns=round(config.scheduler.running_timeout_s * 1e9),
        check=config.scheduler.check,
        parallel=config.parallel,
    )


def port_on(channel: Channel) -> OpenPort:
    """A port on a channel, with the machine's clock and random source."""
    return lambda mailbox: ChannelPort(channel, time.monotonic_ns, lambda: secrets.randbits(32), mailbox)


def build_engine(
    open_port: OpenPort,
    runner: Runner,
    resolved: Resolved,
    config: EngineConfig,
    eos_ids: tuple[int, ...],
    observers: Sequence[Observer],
    replica: int = 0,
    listener: CacheListener | None = None,
) -> Engine:
    """An engine on a port of the caller's, which is given the mailbox of what finishes off the engine's thread."""
    mailbox = Mailbox()
    copies = (
        HostCopies(runner.host, mailbox, config.cache, runner.shapes.page_size) if runner.host is not None else None
    )
    settings = settings_from(resolved, config, eos_ids)
    return assemble(open_port(mailbox), runner, settings, observers, replica, listener, copies, time.monotonic_ns)


def assemble(
    port: Port,
    runner: Runner,
    settings: Settings,
    observers: Sequence[Observer],
    replica: int = 0,
    listener: CacheListener | None = None,
    copies: Copies | None = None,
    clock: Callable[[], int] | None = None,
) -> Engine:
    """An engine from a port, a runner and settings alone.

    ``listener`` hears of the pages of its prefix cache; ``copies`` moves those of the tiers below; ``clock`` times the
    steps that the live page shows, and without one none are kept.
    """
    shapes = runner.shapes
    kv, tiers = _cache(shapes, settings, listener, copies)
    roster = Roster(kv, tiers)
    ring = StepRing(clock or (lambda: 0))
    monitor = Monitor(roster, (*observers, ring) if clock else observers, replica, settings.parallel)
    results = Results(roster, monitor, shapes)
    limits = Limits(
        context_length=min(settings.context_length, shapes.pages_per_row * shapes.page_size),
        pool_tokens=settings.num_pages * shapes.page_size,
        vocab_size=shapes.vocab_size,
        max_queued=settings.max_queued,
        max_queued_tokens=settings.max_queued_tokens,
        priority=settings.priority,
        adapters=frozenset(settings.adapters),
    )
    times = TimeLimits(settings.waiting_timeout_ns, settings.running_timeout_ns)
    tuning = Tuning(Values(limits, times, settings.max_rows))
    operations = Operations(roster, monitor, Pause(roster, results), Lookout(roster, ring, replica), tuning)
    return Engine(
        port=port,
        roster=roster,
        policy=Policy(
            _order(settings),
            TokenRatio(settings.conservativeness, settings.ratio),
            settings.check == "every_step",
            _preemption(settings),
            _budgets(shapes, settings),
            settings.order_seed,
            settings.check != "idle",
        ),
        builder=BatchBuilder(shapes, kv.tables, settings.eos_ids),
        runner=runner,
        results=results,
        control=Control(roster, results, monitor, settings.eos_ids, settings.max_inflight, operations),
        monitor=monitor,
    )


def _order(settings: Settings) -> Order:
    order = ORDERS[settings.order]
    return order if settings.priority == "off" else urgent_first(order)


def _budgets(shapes: Shapes, settings: Settings) -> Budgets:
    return Budgets(
        max_prefill_tokens=settings.max_prefill_tokens,
        max_passed_over=settings.max_passed_over,
        mixed=settings.mixed,
        defer_shared_tokens=settings.defer_shared_tokens,
        reuse=settings.reuse,
        window=shapes.window if settings.window_pages else 0,
        window_pages=settings.window_pages,
        micro_batches=settings.micro_batches,
    )


def _preemption(settings: Settings) -> Preemption | None:
    if settings.priority == "off" or not settings.max_preemptions:
        return None
    return Preemption(settings.preemption_threshold, settings.max_preemptions)


def _cache(
    shapes: Shapes, settings: Settings, listener: CacheListener | None, copies: Copies | None
) -> tuple[PageOwner, CacheTiers | None]:
    """The cache, and what lies below it (document: O-26)."""
    pages, slots = PageAllocator(settings.num_pages), Slots(shapes.max_rows)
    cache = prefix_cache("radix" if settings.reuse else "chunk", settings.eviction, shapes.page_size, listener)
    if settings.window_pages:
        assert not settings.host_pages, "hybrid pools have no tiers"
        window = WindowPages(PageAllocator(settings.window_pages), needed_pages(shapes.window, shapes.page_size))
        full = KVCache(pages, slots, cache, shapes.page_size, shapes.pages_per_row)
        return HybridCache(full, pages, cache, window, listener), None
    if not (settings.host_pages and isinstance(cache, RadixCache)):
        return KVCache(pages, slots, cache, shapes.page_size, shapes.pages_per_row), None
    host = HostTier(
        allocator=PageAllocator(settings.host_pages),
        tree=RadixCache(shapes.page_size, POLICIES[settings.eviction], listener, "CPU_PINNED"),
        copies=copies or NoCopies(),
        page_size=shapes.page_size,
        policy=settings.host_write_policy,
        load_pages=-(-settings.host_load_threshold // shapes.page_size),
    )
    storage = StorageTier(
        host=host,
        prefetch_policy=settings.storage_prefetch,
        timeout_ns=settings.storage_prefetch_timeout_ns,
        least_pages=-(-settings.storage_prefetch_threshold // shapes.page_size),
        attached=settings.storage,
    )
    cache.leaving = host.leaving
    kv = KVCache(pages, slots, cache, shapes.page_size, shapes.pages_per_row, host)
    return kv, CacheTiers(kv, host, storage)
