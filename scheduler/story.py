"""A request's story as values for others: where it stands, and what its time was spent on."""

from scheduler.commands import RequestTimes, Story
from scheduler.request import Request


def story_of(request: Request, now_ns: int, since_ns: int = 0) -> Story:
    """Of a request as it is now, or was when it ended; without the phases that were over before ``since_ns``."""
    state = "ended" if request.finish is not None else "waiting" if request.lease is None else "running"
    return Story(
        rid=request.rid,
        group=request.group,
        state=state,
        outcome="" if request.finish is None else request.finish.reason.value,
        prompt_tokens=request.prompt_len,
        cached_tokens=request.cached_tokens,
        computed_tokens=request.computed,
        output_tokens=len(request.output) if request.finish is None else request.finish.num_tokens,
        retractions=request.retractions,
        times=times_of(request, now_ns, since_ns),
    )


def times_of(request: Request, now_ns: int, since_ns: int = 0) -> RequestTimes:
    """Up to now; the parts of the wait sum to now − arrived."""
    waits = request.waits
    current = waits.current(now_ns)
    elapsed, reason = now_ns - waits.since_ns, waits.reason.value
    waited = dict(waits.total_ns)
    phases = [phase for phase in waits.phases if phase.end_ns >= since_ns] if since_ns else list(waits.phases)
    if elapsed:
        waited[reason] = waited.get(reason, 0) + elapsed
        phases.append(current)
    return RequestTimes(
        arrived_ns=request.arrived_ns,
        admitted_ns=request.admitted_ns,
        first_token_ns=request.first_token_ns,
        finished_ns=now_ns,
        waited_ns=waited,
        phases=phases,
        omitted=waits.omitted,
        reason=waits.reason,
    )
