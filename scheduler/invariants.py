"""Proof that nothing is lost: every page, slot, lock and request is accounted for."""

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from scheduler.commands import LeakPool
from scheduler.page_use import idle_fields
from scheduler.roster import Roster

MAX_NAMED = 16
"""Pages, and slots, that a report names."""


class LeakError(AssertionError):
    """Something is held that nobody uses."""


class Leak(NamedTuple):
    """What was found, and in which pool."""

    pool: LeakPool
    text: str


def prove(roster: Roster) -> list[Leak]:
    """See ``faults``; there are none.

    Raises:
        LeakError: there are.
    """
    if found := faults(roster):
        raise LeakError("; ".join([leak.text for leak in found]))
    return []


def faults(roster: Roster) -> list[Leak]:
    """What is wrong while the engine rests: leaks by the documents' names, then anything else that does not hold."""
    found = [] if roster.running else leaks(roster)
    if roster.tiers is not None:
        found += _faults("host", roster.tiers.host.check)
    said = {leak.text for leak in found}
    return found + [leak for leak in _faults("state", lambda: check(roster)) if leak.text not in said]


def _faults(pool: LeakPool, prove_it: Callable[[], None]) -> list[Leak]:
    try:
        prove_it()
    except AssertionError as error:
        return [Leak(pool, str(error))]
    return []


def leaks(roster: Roster) -> list[Leak]:
    """Pages and slots that are held although no request runs (documents: M-11, M-12, M-13)."""
    kv, groups, found = roster.kv, list(roster.kv.use()), list[Leak]()
    if any(group.used for group in groups):
        if len(groups) > 1:
            fields = idle_fields(groups, kv.page_size)
        else:
            total, free, evictable, protected = (pages * kv.page_size for pages in groups[0])
            fields = {"max_total_num_tokens": total, "available_size": free}
            fields |= {"evictable_size": evictable, "protected_size": protected}
        text = f"token_to_kv_pool_allocator memory leak detected! {_listed(fields)}; {_holders(roster)}"
        found.append(Leak("tokens", text))
    slots = len(kv.tables[0]) - 1
    if kv.free_slots != slots:
        fields = {"available_size": kv.free_slots, "total_size": slots}
        found.append(Leak("slots", f"req_to_token_pool memory leak detected! {_listed(fields)}; {_holders(roster)}"))
    return found


def _listed(fields: dict[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in fields.items())


def _holders(roster: Roster) -> str:
    """Whose slots have pages still, by their page tables; what is in no table is held by nobody."""
    held: list[str] = []
    known = 0
    for slot, row in enumerate(roster.kv.tables[0]):
        pages: list[int] = row[row > 0].tolist()
        if not pages:
            continue
        known += len(pages)
        named = " ".join(map(str, pages[:MAX_NAMED]))
        held.append(f"slot {slot}, last of request {roster.holders.get(slot, '?')}, holds pages {named}")
    lost = roster.kv.use()[0].used - known
    if lost > 0:
        held.append(f"{lost} pages are in no page table")
    return "; ".join(islice(held, MAX_NAMED)) or "no page table holds a page"


def check(roster: Roster) -> None:
    """Assert what holds between any two verbs of the engine. Costs as much as there are pages."""
    roster.kv.check()
    page_size = roster.kv.page_size
    for request in roster.running.values():
        lease = request.lease
        assert lease is not None, "a running request has no lease"
        assert lease.published * page_size <= request.known <= request.computed, "a page was published unwritten"
        assert request.computed <= lease.capacity, "a request computed beyond its pages"
        assert 0 <= request.inflight <= request.unread, "tokens in flight were counted wrongly"
        assert request.finish is None or request.unread, "an ended request with nothing in flight still runs"
    for request in roster.waiting.values():
        assert request.lease is None, "a waiting request holds pages"
        assert not request.unread, "a waiting request has a row in flight"
        assert request.finish is None, "an ended request waits"
    by_level = [request for level in roster.levels for request in level]
    assert by_level == sorted(roster.waiting.values(), key=lambda r: -r.urgency), "the levels are not the queue"
    assert roster.waiting_tokens == sum(r.prompt_len for r in roster.waiting.values()), "waiting tokens are miscounted"
    leases = roster.kv.num_leases
    assert leases == len(roster.running), "a lease belongs to no running request"
