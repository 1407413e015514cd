"""Where time, chance and commands enter: the only reader of a clock and drawer of seeds."""

from collections.abc import Callable
from typing import Protocol

from msgspec import structs

from scheduler.channel import Channel, Origin
from scheduler.commands import Batch, Command, Delta, Finished, Generate, Rejected, Reply
from scheduler.completions import Mailbox
from scheduler.tick import Tick

Answer = tuple[Origin, Delta | Finished | Rejected | Reply]


class Port(Protocol):
    """The world as the engine sees it."""

    def poll(self) -> Tick:
        """A turn's input with whatever waits. Never blocks."""
        ...

    def wait(self, limit_s: float | None = None) -> Tick:
        """A turn's input once there is a command or a completion; blocks until then, or for so long."""
        ...

    def send(self, answers: list[Answer]) -> None:
        """Deliver answers. Never blocks."""
        ...


OpenPort = Callable[[Mailbox], Port]
"""Opens the port of an engine whose work elsewhere ends in the mailbox."""


class ChannelPort:
    """A port on a channel.

    Args:
        channel: the engine's end.
        clock: monotonic nanoseconds.
        draw_seed: a number below 2**32 for a request that brought none.
        mailbox: what finishes off the engine's thread.
    """

    def __init__(
        self, channel: Channel, clock: Callable[[], int], draw_seed: Callable[[], int], mailbox: Mailbox | None = None
    ) -> None:
        self._channel = channel
        self._clock = clock
        self._draw_seed = draw_seed
        self._mailbox = Mailbox() if mailbox is None else mailbox
        self._mailbox.wake = channel.wake
        self._number = 0

    def poll(self) -> Tick:
        """See ``Port``."""
        return self._tick(self._channel.receive(0))

    def wait(self, limit_s: float | None = None) -> Tick:
        """See ``Port``. A channel may return early with nothing, as when a frontend greets: that is no turn."""
        commands = self._channel.receive(0 if self._mailbox else limit_s)
        while not (commands or self._mailbox or limit_s is not None):
            commands = self._channel.receive(None)
        return self._tick(commands)

    def send(self, answers: list[Answer]) -> None:
        """Give every frontend its answers, those of requests in one message."""
        batches: dict[Origin, list[Delta | Finished | Rejected]] = {}
        for origin, answer in answers:
            if isinstance(answer, Reply):
                self._channel.send(origin, answer)
            else:
                batches.setdefault(origin, []).append(answer)
        for origin, messages in batches.items():
            self._channel.send(origin, Batch(messages=messages))

    def _tick(self, commands: list[tuple[Origin, Command]]) -> Tick:
        self._number += 1
        seeded = [(origin, self._seeded(command)) for origin, command in commands]
        return Tick(self._number, self._clock(), seeded, self._mailbox.take())

    def _seeded(self, command: Command) -> Command:
        if not isinstance(command, Generate) or command.params.seed is not None:
            return command
        return structs.replace(command, params=structs.replace(command.params, seed=self._draw_seed()))
