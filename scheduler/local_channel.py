"""A channel inside one process: the engine on one thread, clients on others."""

from collections import deque
from threading import Condition

from scheduler.channel import Origin
from scheduler.commands import Command, Message

MAX_COMMANDS = 65_536
MAX_MESSAGES = 1_048_576


class ChannelFullError(Exception):
    """One side does not take what the other sends."""


class LocalClient:
    """A client's end. Thread-safe."""

    def __init__(self, channel: "LocalChannel", origin: Origin) -> None:
        self._channel = channel
        self._origin = origin

    def send(self, command: Command) -> None:
        """Queue a command; raises ChannelFullError when the engine takes none."""
        self._channel.submit(self._origin, command)

    def receive(self, timeout_s: float | None) -> list[Message]:
        """All messages that wait; blocks up to ``timeout_s`` (None: for ever) for the first.

        Raises:
            ChannelFullError: messages were lost because they were not taken in time.
        """
        return self._channel.collect(self._origin, timeout_s)


class LocalChannel:
    """The engine's end (``scheduler.channel.Channel``). Thread-safe."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._commands: deque[tuple[Origin, Command]] = deque()
        self._messages: dict[Origin, deque[Message]] = {}
        self._lost: set[Origin] = set()
        self._woken = False

    def client(self, origin: Origin) -> LocalClient:
        """Make the client's end for one origin; sees what is sent to it from now on."""
        with self._changed:
            self._messages.setdefault(origin, deque())
        return LocalClient(self, origin)

    def receive(self, timeout_s: float | None) -> list[tuple[Origin, Command]]:
        """See ``Channel``."""
        with self._changed:
            if timeout_s != 0:
                self._changed.wait_for(lambda: self._commands or self._woken, timeout_s)
            self._woken = False
            commands = list(self._commands)
            self._commands.clear()
            return commands

    def send(self, origin: Origin, message: Message) -> None:
        """See ``Channel``; what is sent to an origin without a client is dropped."""
        with self._changed:
            self._put(origin, message)
            self._changed.notify_all()

    def broadcast(self, message: Message) -> None:
        """See ``Channel``."""
        with self._changed:
            for origin in self._messages:
                self._put(origin, message)
            self._changed.notify_all()

    def wake(self) -> None:
        """See ``Channel``."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def submit(self, origin: Origin, command: Command) -> None:
        """Queue a client's command."""
        with self._changed:
            if len(self._commands) >= MAX_COMMANDS:
                raise ChannelFullError("the engine does not take commands")
            self._commands.append((origin, command))
            self._changed.notify_all()

    def collect(self, origin: Origin, timeout_s: float | None) -> list[Message]:
        """Take a client's messages."""
        messages = self._messages[origin]
        with self._changed:
            self._changed.wait_for(lambda: messages or origin in self._lost, timeout_s)
            if origin in self._lost:
                raise ChannelFullError("messages were lost because the client did not take them")
            taken = list(messages)
            messages.clear()
            return taken

    def _put(self, origin: Origin, message: Message) -> None:
        messages = self._messages.get(origin)
        if messages is None:
            return
        if len(messages) >= MAX_MESSAGES:
            self._lost.add(origin)
        else:
            messages.append(message)
