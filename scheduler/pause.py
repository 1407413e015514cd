"""Generation stands still between two commands: in what way, and who waits for it to have come to rest.

A pause is over with ``ContinueGeneration``. Until then requests are taken and queued, and no step is launched.
"""

from typing import Final

from scheduler.channel import Origin
from scheduler.charges import held_back
from scheduler.commands import (
    Command,
    ContinueGeneration,
    FinishReason,
    PauseGeneration,
    PauseMode,
    Reason,
    Reply,
)
from scheduler.port import Answer
from scheduler.request import Finish
from scheduler.results import Results
from scheduler.roster import Roster

MAX_CALLERS: Final = 64
"""Who may wait for one pause at a time."""


class Pause:
    """The state, and the handlers of both commands (documents: P-1 to P-5)."""

    def __init__(self, roster: Roster, results: Results) -> None:
        self.mode: PauseMode | None = None
        """None: generation goes on."""
        self._roster = roster
        self._results = results
        self._callers: list[tuple[Origin, str]] = []

    @property
    def pending(self) -> bool:
        """Whether somebody waits for the engine to come to rest."""
        return bool(self._callers)

    @property
    def settled(self) -> bool:
        """Whether it has: nothing is in flight, and with ``retract`` nothing runs."""
        running = self._roster.running.values()
        return self.mode is not None and not (running if self.mode == "retract" else any(r.unread for r in running))

    def begin(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        """Plan no more steps. The caller is answered once what was launched has been read."""
        assert isinstance(command, PauseGeneration)
        if len(self._callers) >= MAX_CALLERS:
            message = "Too many callers wait for a pause already."
            return [(origin, Reply(call=command.call, success=False, message=message))]
        self.mode = command.mode
        self._callers.append((origin, command.call))
        requests = self._roster.open_requests()
        if command.mode == "abort":
            return [self._results.end(r, Finish(FinishReason.ABORT, None, len(r.output)), now_ns) for r in requests]
        for request in requests:
            request.waits.change(Reason.PAUSED, now_ns)
        return []

    def end(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        """Go on."""
        assert isinstance(command, ContinueGeneration)
        message = "Generation was not paused." if self.mode is None else "Generation continues."
        self.mode = None
        for request in self._roster.open_requests():
            held_back(request, request.work, now_ns)
        return [*self.give_up(), (origin, Reply(call=command.call, success=True, message=message))]

    def rested(self) -> list[Answer]:
        """Answer all who waited: it has come to rest."""
        return self._answer(True, f"Generation is paused ({self.mode}).")

    def give_up(self) -> list[Answer]:
        """Answer all who wait: it will not come to rest."""
        return self._answer(False, "The pause ended before the engine had come to rest.")

    def _answer(self, success: bool, message: str) -> list[Answer]:
        callers, self._callers = self._callers, []
        return [(origin, Reply(call=call, success=success, message=message)) for origin, call in callers]
