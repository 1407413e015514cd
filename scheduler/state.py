"""The scheduler's state for whoever looks for a fault, in the documents' words (O-33). Bounded, and without prompts."""

from typing import Final

import msgspec

from configs.schema import Parallel
from scheduler.commands import StateScalar, StateValue
from scheduler.observe import Monitor
from scheduler.page_use import usage
from scheduler.roster import Roster

FIRST_RIDS: Final = 5


def dump_state(roster: Roster, monitor: Monitor, now_ns: int) -> dict[str, StateValue]:
    """What runs, what waits, and what is left of the pool. Only reads: the watchdog's thread may call it.

    ``timestamp`` is in seconds of the engine's clock.
    """
    kv = roster.kv
    running, waiting = list(roster.running.values()), list(roster.waiting.values())
    available = kv.available()[0]
    return {
        "timestamp": now_ns / 1e9,
        "forward_count": monitor.forward_count,
        "running_batch": {
            "size": len(running),
            "forward_mode": monitor.mode,
            "rids": [request.rid for request in running[:FIRST_RIDS]],
            "in_flight": sum(request.unread for request in running),
        },
        "waiting_queue": {
            "size": len(waiting),
            "rids": [request.rid for request in waiting[:FIRST_RIDS]],
            "reasons": _reasons([request.waits.reason.value for request in waiting]),
        },
        "memory_stats": {
            "token_usage": round(usage(kv.use()), 3),
            "available_tokens": available * kv.page_size,
            "cached_tokens": kv.cached * kv.page_size,
            "total_tokens": kv.num_pages * kv.page_size,
            "req_pool_usage": round(1 - kv.free_slots / max(len(kv.tables[0]) - 1, 1), 3),
        },
        "parallel_config": parallel_config(monitor.parallel, monitor.replica),
    }


def parallel_config(parallel: Parallel, replica: int) -> dict[str, StateScalar | list[StateScalar]]:
    """Which part of the service an engine is. One process drives all devices of an engine, so it is the first rank."""
    return {
        "tp_rank": 0,
        "tp_size": parallel.tensor,
        "pp_rank": 0,
        "pp_size": parallel.stages,
        "dp_rank": dp_rank(parallel, replica),
    }


def dp_rank(parallel: Parallel, replica: int) -> int | None:
    """The number of an engine among several; None where there is one."""
    return replica if parallel.replicas > 1 else None


def dump_text(state: dict[str, StateValue]) -> str:
    """A state as one line of JSON."""
    return msgspec.json.encode(state).decode()


def _reasons(found: list[str]) -> list[StateScalar]:
    return [f"{reason}: {found.count(reason)}" for reason in dict.fromkeys(found)]
