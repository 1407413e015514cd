"""What operators may change of an engine while it runs, and nothing else (document: O-41)."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from scheduler.channel import Origin
from scheduler.commands import Command, Reply, SetState
from scheduler.deadlines import TimeLimits
from scheduler.gates import Limits
from scheduler.port import Answer

DAY_S: Final = 86_400

logger = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True)
class Values:
    """The settings as they stand."""

    limits: Limits
    times: TimeLimits
    max_rows: int
    """Rows that one plan may hold."""


@dataclass(slots=True, frozen=True)
class Knob:
    """One setting: whole numbers unless it is a time, in seconds."""

    least: float
    most: float
    whole: bool
    read: Callable[[Values], float]
    write: Callable[[Values, float], Values]


def _seconds(read: Callable[[TimeLimits], int], write: Callable[[TimeLimits, int], TimeLimits]) -> Knob:
    return Knob(
        0,
        DAY_S,
        False,
        lambda values: read(values.times) / 1e9,
        lambda values, given: replace(values, times=write(values.times, round(given * 1e9))),
    )


def knobs(max_rows: int) -> dict[str, Knob]:
    """By the names of the launch file; the rows of a step, ``max_rows`` at most, by SGLang's name."""
    return {
        "pp_max_micro_batch_size": Knob(
            1, max_rows, True, lambda v: v.max_rows, lambda v, given: replace(v, max_rows=int(given))
        ),
        "max_queued_requests": Knob(
            1,
            1_000_000,
            True,
            lambda v: v.limits.max_queued,
            lambda v, given: replace(v, limits=replace(v.limits, max_queued=int(given))),
        ),
        "max_queued_tokens": Knob(
            1,
            2**31 - 1,
            True,
            lambda v: v.limits.max_queued_tokens,
            lambda v, given: replace(v, limits=replace(v.limits, max_queued_tokens=int(given))),
        ),
        "waiting_timeout_s": _seconds(lambda t: t.waiting_ns, lambda t, ns: t._replace(waiting_ns=ns)),
        "running_timeout_s": _seconds(lambda t: t.running_ns, lambda t, ns: t._replace(running_ns=ns)),
    }


class Tuning:
    """The settings, and the handler of ``SetState``; requests that wait or run are under the new ones from then on."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self._knobs = knobs(values.max_rows)

    def shown(self) -> dict[str, float]:
        """All settings by name."""
        return {name: knob.read(self.values) for name, knob in self._knobs.items()}

    def set(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        """Change all that is named, or nothing."""
        del now_ns
        assert isinstance(command, SetState), "registered for nothing else"
        values = self.values
        for name, given in command.settings.items():
            knob = self._knobs.get(name)
            if knob is None:
                names = ", ".join(self._knobs)
                message = f"{name} cannot be set while the engine runs; what can be set: {names}."
                return [(origin, Reply(call=command.call, success=False, message=message))]
            if not knob.least <= given <= knob.most or (knob.whole and not isinstance(given, int)):
                kind = "a whole number" if knob.whole else "seconds"
                message = f"{name} takes {kind} from {knob.least:g} to {knob.most:g} (got {given:g})."
                return [(origin, Reply(call=command.call, success=False, message=message))]
            values = knob.write(values, given)
        self.values = values
        logger.info("settings changed: %s", dict(command.settings))
        return [(origin, Reply(call=command.call, success=True, message="", state={"settings": {**self.shown()}}))]
