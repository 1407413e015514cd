"""Puts an engine together from its parts."""

import secrets
import time
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from configs.schema import EngineConfig, Eviction, OrderName, Resolved
from model.interface import Runner, Shapes
from scheduler.batch_builder import BatchBuilder
from scheduler.channel import Channel
from scheduler.control import Control
from scheduler.deadlines import TimeLimits
from scheduler.draft import Budgets
from scheduler.engine import Engine, Policy
from scheduler.gates import Limits
from scheduler.kv_cache import KVCache
from scheduler.observe import Monitor, Observer
from scheduler.order import ORDERS, Order
from scheduler.page_allocator import PageAllocator
from scheduler.port import ChannelPort, Port
from scheduler.preemption import Preemption
from scheduler.prefix_cache import prefix_cache
from scheduler.priority import Direction, urgent_first
from scheduler.results import Results
from scheduler.roster import Roster
from scheduler.slots import Slots
from scheduler.token_ratio import RatioSettings, TokenRatio


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
    eos_ids: tuple[int, ...]
    reuse: bool = True
    """Whether prefixes are cached."""
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
    check: Literal["idle", "every_step"] = "idle"


def settings_from(resolved: Resolved, config: EngineConfig, eos_ids: tuple[int, ...]) -> Settings:
    """What a launch file says to the scheduler."""
    return Settings(
        context_length=resolved.context_length,
        num_pages=resolved.num_pages,
        max_rows=resolved.max_running_requests,
        depth=resolved.depth,
        max_inflight=resolved.depth,
        eos_ids=eos_ids,
        reuse=resolved.cache_family == "radix",
        eviction=config.cache.eviction,
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
    )


def build_engine(
    channel: Channel,
    runner: Runner,
    resolved: Resolved,
    config: EngineConfig,
    eos_ids: tuple[int, ...],
    observers: Sequence[Observer],
    replica: int = 0,
) -> Engine:
    """An engine on a channel, with the machine's clock and random source."""
    port = ChannelPort(channel, time.monotonic_ns, lambda: secrets.randbits(32))
    return assemble(port, runner, settings_from(resolved, config, eos_ids), observers, replica)


def assemble(port: Port, runner: Runner, settings: Settings, observers: Sequence[Observer], replica: int = 0) -> Engine:
    """An engine from a port, a runner and settings alone."""
    shapes = runner.shapes
    kv = _kv_cache(shapes, settings)
    roster = Roster(kv)
    monitor = Monitor(roster, observers, replica)
    results = Results(roster, monitor, shapes)
    limits = Limits(
        context_length=min(settings.context_length, shapes.pages_per_row * shapes.page_size),
        pool_tokens=settings.num_pages * shapes.page_size,
        vocab_size=shapes.vocab_size,
        max_queued=settings.max_queued,
        max_queued_tokens=settings.max_queued_tokens,
        priority=settings.priority,
    )
    time_limits = TimeLimits(settings.waiting_timeout_ns, settings.running_timeout_ns)
    return Engine(
        port=port,
        roster=roster,
        policy=Policy(
            _order(settings),
            settings.max_rows,
            TokenRatio(settings.conservativeness, settings.ratio),
            settings.check == "every_step",
            _preemption(settings),
            _budgets(settings),
            settings.order_seed,
        ),
        builder=BatchBuilder(shapes, kv.tables, settings.eos_ids),
        runner=runner,
        results=results,
        control=Control(roster, results, monitor, limits, settings.eos_ids, settings.max_inflight, time_limits),
        monitor=monitor,
    )


def _order(settings: Settings) -> Order:
    order = ORDERS[settings.order]
    return order if settings.priority == "off" else urgent_first(order)


def _budgets(settings: Settings) -> Budgets:
    return Budgets(
        max_prefill_tokens=settings.max_prefill_tokens,
        max_passed_over=settings.max_passed_over,
        mixed=settings.mixed,
        defer_shared_tokens=settings.defer_shared_tokens,
        reuse=settings.reuse,
    )


def _preemption(settings: Settings) -> Preemption | None:
    if settings.priority == "off" or not settings.max_preemptions:
        return None
    return Preemption(settings.preemption_threshold, settings.max_preemptions)


def _kv_cache(shapes: Shapes, settings: Settings) -> KVCache:
    pages, slots = PageAllocator(settings.num_pages), Slots(shapes.max_rows)
    cache = prefix_cache("radix" if settings.reuse else "chunk", settings.eviction, shapes.page_size)
    return KVCache(pages, slots, cache, shapes.page_size, shapes.pages_per_row)
