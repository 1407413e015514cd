"""Proof that nothing is lost: every page, slot, lock and request is accounted for."""

from scheduler.roster import Roster


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
    assert roster.waiting_tokens == sum(r.prompt_len for r in roster.waiting.values()), "waiting tokens are miscounted"
    leases = roster.kv.num_leases
    assert leases == len(roster.running), "a lease belongs to no running request"
