"""A leak is found when the engine comes to rest, and named."""

import logging

import numpy as np
import pytest
from msgspec import structs

from scheduler.assembly import Settings, assemble
from scheduler.cache_tiers import CacheTiers
from scheduler.commands import (
    Command,
    DumpState,
    FlushCache,
    GetState,
    Reply,
    SamplingParams,
    Shutdown,
    StepStats,
)
from scheduler.copies import NoCopies
from scheduler.eviction import POLICIES
from scheduler.forward_count import ForwardCount
from scheduler.host_tier import HostTier
from scheduler.invariants import LeakError, faults, leaks
from scheduler.kv_cache import KVCache
from scheduler.loop import run
from scheduler.observe import Event
from scheduler.page_allocator import PageAllocator
from scheduler.planner import Plan
from scheduler.radix_cache import RadixCache
from scheduler.request import Request, Waits
from scheduler.roster import Roster
from scheduler.slots import Slots
from scheduler.storage_tier import StorageTier
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, Watcher, ask

# document: M-11, M-13, M-16, O-22, O-23


class Leaky:
    """Locks a prefix while its request runs, and never unlocks it."""

    def __init__(self) -> None:
        self.done = False

    def observe(self, event: Event) -> None:
        if not self.done and isinstance(event, Plan) and event.decode and event.decode[0].lease is not None:
            node = event.decode[0].lease.node
            self.done = True
            while node.parent is not None:
                node.refs += 1
                node = node.parent


def rest(settings: Settings, leaky: bool, more: dict[int, list[Command]] | None = None) -> Watcher:
    watcher = Watcher()
    script: dict[int, list[Command]] = {0: [ask("guilty", [1, 2, 3, 4, 5], 9)], 900: [Shutdown()], **(more or {})}
    turns = {turn: [(0, command) for command in commands] for turn, commands in script.items()}
    observers = (Leaky(), watcher) if leaky else (watcher,)
    run(assemble(ScriptedPort(turns), KVEchoRunner(SHAPES), settings, observers), settings.depth)
    return watcher


def leaks_of(watcher: Watcher) -> dict[str, int]:
    return [event for event in watcher.events if isinstance(event, StepStats)][-1].leaks


IDLE = structs.replace(SETTINGS, check="idle")
STRICT = structs.replace(SETTINGS, check="strict")


def test_a_lock_that_is_never_undone_is_reported_by_the_documents_names_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        watcher = rest(IDLE, True, {600: [GetState(call="s")]})
    text = caplog.text
    assert "token_to_kv_pool_allocator memory leak detected!" in text
    for name in ("max_total_num_tokens=128", "available_size=", "evictable_size=", "protected_size="):
        assert name in text
    said = [record.getMessage() for record in caplog.records if record.name == "scheduler.observe"]
    assert len(said) == len(set(said)) == sum(leaks_of(watcher).values())  # once, though it came to rest twice
    assert leaks_of(watcher)["tokens"] == 1
    assert leaks_of(watcher)["slots"] == 0


def test_with_strict_checks_a_leak_ends_the_engine() -> None:
    with pytest.raises(LeakError, match="token_to_kv_pool_allocator memory leak detected!"):
        rest(STRICT, True)


def test_without_a_leak_nothing_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert leaks_of(rest(IDLE, False)) == {"tokens": 0, "slots": 0, "state": 0}
    assert "leak" not in caplog.text
    rest(STRICT, False)


def roster_with_a_lost_request() -> Roster:
    """A request that has gone without giving back what it had."""
    kv = KVCache(PageAllocator(16), Slots(3), RadixCache(2), 2, 8)
    roster = Roster(kv)
    request = Request(
        rid="guilty",
        group=None,
        origin=0,
        number=1,
        prompt=np.arange(5, dtype=np.int32),
        params=SamplingParams(max_new_tokens=4),
        stream=True,
        namespace=b"",
        max_new=4,
        stop_ids=frozenset(),
        max_inflight=1,
        arrived_ns=0,
        waits=Waits(0),
    )
    roster.add(request)
    roster.admit(request)
    assert request.lease is not None
    kv.grow(request.lease, 5)
    del roster.running[request.number]
    return roster


def test_what_leaked_and_who_held_it_is_named() -> None:
    (pool, pages), (other, slots) = leaks(roster_with_a_lost_request())
    assert (pool, other) == ("tokens", "slots")
    assert pages.startswith(
        "token_to_kv_pool_allocator memory leak detected! "
        "max_total_num_tokens=32, available_size=26, evictable_size=0, protected_size=0; slot "
    )
    assert slots.startswith("req_to_token_pool memory leak detected! available_size=2, total_size=3; slot ")
    assert "last of request guilty, holds pages " in pages
    assert len(pages.rpartition("pages ")[2].split()) == 3


def test_a_lost_page_of_the_host_tier_is_said_once_and_by_its_pool() -> None:
    host = HostTier(
        allocator=PageAllocator(8),
        tree=RadixCache(2, POLICIES["lru"], None, "CPU_PINNED"),
        copies=NoCopies(),
        page_size=2,
        policy="write_through",
        load_pages=1,
    )
    storage = StorageTier(host=host, prefetch_policy="timeout", timeout_ns=0, least_pages=1, attached=False)
    kv = KVCache(PageAllocator(16), Slots(3), RadixCache(2), 2, 8, host)
    roster = Roster(kv, CacheTiers(kv, host, storage))
    assert faults(roster) == []
    host.allocator.take(1)
    assert faults(roster) == [("host", "a host page is lost or has two owners")]


def test_what_else_does_not_hold_is_said_too() -> None:
    roster = roster_with_a_lost_request()
    assert faults(roster)[-1] == ("state", "a lease belongs to no running request")


def test_the_forward_count_is_said_at_rest_once_in_a_thousand_steps_and_a_flush_begins_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = structs.replace(SETTINGS, context_length=64, check="idle")
    more: dict[int, list[Command]] = {}
    for turn in range(30):
        more[200 * turn] = [ask(f"r{turn}", [1, 2, 3], 50)]
    more[6100] = [FlushCache(call="f")]
    more[6200] = [ask("after", [1, 2, 3], 50), DumpState(call="d")]
    more[6500] = [DumpState(call="e")]
    with caplog.at_level(logging.INFO):
        port = ScriptedPort(
            {turn: [(0, c) for c in commands] for turn, commands in {**more, 9000: [Shutdown()]}.items()}
        )
        run(assemble(port, KVEchoRunner(SHAPES), settings, (ForwardCount(),)), settings.depth)
    said = [record.getMessage() for record in caplog.records if "Forward count" in record.getMessage()]
    assert len(said) == 1
    assert int(said[0].removeprefix("Forward count: ")) >= 1000
    states = [answer.state for _, answer in port.answers if isinstance(answer, Reply) and answer.state]
    assert 0 < states[-1]["forward_count"] < 100
