"""What operators command: the cache, the state, a pause, the garbage collector."""

import gc
import logging
from collections.abc import Callable, Mapping
from typing import Final

from scheduler.channel import Origin
from scheduler.commands import (
    Command,
    ContinueGeneration,
    DumpState,
    Explain,
    FlushCache,
    FreezeGC,
    GetState,
    Look,
    PauseGeneration,
    Reply,
    SetState,
    StateValue,
)
from scheduler.lookout import Lookout
from scheduler.observe import CacheFlushed, Monitor
from scheduler.page_use import usage
from scheduler.pause import Pause
from scheduler.port import Answer
from scheduler.roster import Roster
from scheduler.state import dump_state, dump_text
from scheduler.tuning import Tuning

logger = logging.getLogger(__name__)

FIRST_RIDS: Final = 5
Handler = Callable[[Origin, Command, int], list[Answer]]


class Operations:
    """Handlers of the commands that concern no single request.

    Args:
        roster: the requests.
        monitor: is told of what changes the figures.
        pause: whether generation stands still.
        lookout: answers those who want to see.
        tuning: the settings that may change.
    """

    def __init__(self, roster: Roster, monitor: Monitor, pause: Pause, lookout: Lookout, tuning: Tuning) -> None:
        self.pause = pause
        self.tuning = tuning
        self._roster = roster
        self._monitor = monitor
        self.handlers: Mapping[type[Command], Handler] = {
            FlushCache: self._flush,
            GetState: self._state,
            SetState: tuning.set,
            DumpState: self._dump,
            PauseGeneration: pause.begin,
            ContinueGeneration: pause.end,
            FreezeGC: self._freeze_gc,
            Explain: lookout.answer,
            Look: lookout.answer,
        }

    def _flush(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        """Forget what nobody uses. In a pause requests may wait, as they hold nothing."""
        del now_ns
        assert isinstance(command, FlushCache)
        roster = self._roster
        if roster.running or (roster.waiting and self.pause.mode is None):
            message = f"Not flushed: {len(roster.running)} requests run, {len(roster.waiting)} wait."
            logger.warning(
                "Cache not flushed because there are pending requests. #queue-req: %d, #running-req: %d",
                len(roster.waiting),
                len(roster.running),
            )
            return [(origin, Reply(call=command.call, success=False, message=message))]
        pages = roster.kv.flush()
        self._monitor.flushed(CacheFlushed(pages))
        logger.info("Cache flushed successfully! %d pages", pages)
        return [(origin, Reply(call=command.call, success=True, message=f"Flushed {pages} pages."))]

    def _state(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        assert isinstance(command, GetState)
        roster, kv = self._roster, self._roster.kv
        available = kv.available()[0]
        running = [request.rid for request in roster.running.values()]
        state: dict[str, StateValue] = {
            "timestamp_ns": now_ns,
            "num_running": len(running),
            "running_rids": " ".join(running[:FIRST_RIDS]),
            "num_waiting": len(roster.waiting),
            "waiting_rids": " ".join(r.rid for r in list(roster.waiting.values())[:FIRST_RIDS]),
            "available_tokens": available * kv.page_size,
            "cached_tokens": kv.cached * kv.page_size,
            "total_tokens": kv.num_pages * kv.page_size,
            "token_usage": usage(kv.use()),
            "free_slots": kv.free_slots,
            "page_size": kv.page_size,
            "paused": self.pause.mode,
            "settings": {**self.tuning.shown()},
            "host_pages": roster.tiers.host.num_pages if roster.tiers else 0,
            "storage_attached": roster.tiers is not None and roster.tiers.storage.attached,
        }
        return [(origin, Reply(call=command.call, success=True, message="", state=state))]

    def _dump(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        assert isinstance(command, DumpState)
        state = dump_state(self._roster, self._monitor, now_ns)
        logger.info("scheduler state: %s", dump_text(state))
        return [(origin, Reply(call=command.call, success=True, message="", state=state))]

    def _freeze_gc(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        del now_ns
        assert isinstance(command, FreezeGC)
        gc.collect()
        gc.freeze()
        message = f"{gc.get_freeze_count()} objects are collected no more."
        logger.info("garbage collection: %s", message)
        return [(origin, Reply(call=command.call, success=True, message=message))]
