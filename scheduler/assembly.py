"""Puts an engine together from its parts."""

import secrets
import time
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from configs.schema import EngineConfig, Resolved
from model.interface import Runner, Shapes
from scheduler.batch_builder import BatchBuilder
from scheduler.channel import Channel
from scheduler.control import Control
from scheduler.engine import Engine, Policy
from scheduler.gates import Limits
from scheduler.kv_cache import KVCache
from scheduler.observe import Monitor, Observer
from scheduler.order import ORDERS
from scheduler.page_allocator import PageAllocator
from scheduler.port import ChannelPort, Port
from scheduler.results import Results
from scheduler.roster import Roster
from scheduler.slots import Slots
from scheduler.token_ratio import TokenRatio


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
    order: Literal["fcfs", "lpm"] = "fcfs"
    conservativeness: float = 1.0
    max_queued: int = 4096
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
        reuse=config.cache.radix,
        order=config.scheduler.order,
        conservativeness=config.scheduler.conservativeness,
        max_queued=config.scheduler.max_queued_requests,
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
    )
    return Engine(
        port=port,
        roster=roster,
        policy=Policy(
            ORDERS[settings.order],
            settings.max_rows,
            TokenRatio(settings.conservativeness),
            settings.check == "every_step",
        ),
        builder=BatchBuilder(shapes, kv.tables, settings.eos_ids),
        runner=runner,
        results=results,
        control=Control(roster, results, monitor, limits, settings.eos_ids, settings.max_inflight),
        monitor=monitor,
    )


def _kv_cache(shapes: Shapes, settings: Settings) -> KVCache:
    pages, slots = PageAllocator(settings.num_pages), Slots(shapes.max_rows)
    return KVCache(pages, slots, shapes.page_size, shapes.pages_per_row, settings.reuse)
