"""Starts the processes of the service, watches them, and ends them; it is also the collector's home.

It binds the port before anything loads and hands the listening socket to every frontend, so that ``/livez``
answers at once. The first process that dies takes the service with it: frontends are told, streams end with
an error, and the launcher leaves with the reason. SIGTERM or Ctrl-C drains; a second one aborts.
"""

import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Final

import msgspec
import zmq

from configs import log
from configs.env import engine_environment
from configs.errors import ConfigError
from configs.schema import EngineConfig
from scheduler.commands import FAILED, Shutdown
from scheduler.start import Endpoints, EngineStart, FrontendStart, frontend_id
from serving.children import Child, spawn
from serving.collector import Collector
from serving.metrics import Metrics
from serving.startup import Display, display

ENGINE_MODULE: Final = "scheduler.main"
FRONTEND_MODULE: Final = "serving.frontend"
BACKLOG: Final = 2048
SEND_BUFFER_BYTES: Final = 128 * 1024
"""Kernel memory for what one reader has not taken; by itself it may grow to megabytes for each that stalls."""
DEATH_GRACE_S: Final = 2.0
"""After a death: for streams to end with an error and for probes to see 503."""
ABORT_GRACE_S: Final = 5.0
"""Between asking a process to go and killing it."""
LAST_WORDS_S: Final = 0.3
_TICK_S: Final = 1.0
LAUNCHER: Final = 9999
"""The launcher's ``Origin``: a number that no frontend has."""


@dataclass(slots=True, frozen=True)
class Family:
    """The child processes."""

    engine: Child
    frontends: tuple[Child, ...]

    @property
    def members(self) -> tuple[Child, ...]:
        """All of them, the engine first."""
        return (self.engine, *self.frontends)

    @property
    def alive(self) -> tuple[Child, ...]:
        """Those that still run."""
        return tuple(child for child in self.members if child.alive)

    @property
    def dead(self) -> tuple[Child, ...]:
        """Those that do not."""
        return tuple(child for child in self.members if not child.alive)


def launch(config: EngineConfig, name: str, engine_module: str = ENGINE_MODULE) -> int:
    """Serve until a signal or a death; returns the exit code of the process.

    Raises:
      ConfigError: the address cannot be bound.
    """
    log.configure(config.observe, "launcher")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(bind(config.serving.host, config.serving.port))
        endpoints = Endpoints(stack.enter_context(tempfile.TemporaryDirectory(prefix="radjax-")))
        signals = stack.enter_context(caught_signals())
        context: zmq.Context[zmq.SyncSocket] = stack.enter_context(zmq.Context())
        metrics = make_metrics(config, name)
        collector = Collector(context, endpoints, metrics, config.serving.workers)
        stack.callback(collector.close)
        family = _start(config, name, engine_module, endpoints, listener)
        stack.callback(_end, family)
        shown = display()
        stack.callback(shown.close)
        engine = stack.enter_context(context.socket(zmq.DEALER))
        engine.set(zmq.IDENTITY, frontend_id(LAUNCHER))
        engine.set(zmq.LINGER, 0)
        engine.connect(endpoints.engine(0))
        return Launcher(config, family, collector, engine, signals, shown, url_of(listener)).run()


def make_metrics(config: EngineConfig, name: str) -> Metrics | None:
    """The figures of a service, where they are wanted (document: M-2)."""
    if not config.observe.metrics:
        return None
    labels = {"model_name": config.model.name or name, "engine_type": "unified"}
    return Metrics(labels, config.observe.metrics_alias, ranked=config.parallel.replicas > 1)


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Raises:
      ConfigError: the port is in use, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen: {error.strerror}", key="serving.host", value=host) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}: {error.strerror}",
            key="serving.port",
            value=port,
            suggestion="stop what listens there, or choose another with --port or --set serving.port=N",
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The address as a browser wants it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def caught_signals() -> Generator[socket.socket, None, None]:
    """A socket that yields the number of each SIGTERM, SIGINT and SIGCHLD as a byte. For the main thread only."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    before = {number: signal.signal(number, _heard) for number in numbers}
    descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        reading.close()
        writing.close()


class Launcher:
    """The life of the service after its processes have been started."""

    def __init__(
        self,
        config: EngineConfig,
        family: Family,
        collector: Collector,
        engine: "zmq.SyncSocket",
        signals: socket.socket,
        shown: Display,
        url: str,
    ) -> None:
        self._config = config
        self._family = family
        self._collector = collector
        self._engine = engine
        self._signals = signals
        self._display = shown
        self._url = url
        self._asked = 0
        self._announced = False
        self._shown_progress = collector.last_progress
        self._poller = zmq.Poller()
        for source in (*collector.sockets, signals.fileno()):
            self._poller.register(source, zmq.POLLIN)

    def run(self) -> int:
        """Until a signal or a death; every child is gone, or about to be killed, afterwards."""
        self._turn_until(lambda: self._asked > 0 or bool(self._family.dead))
        return self._drain() if self._asked else self._fail(self._family.dead)

    def _drain(self) -> int:
        """Let what runs finish, then go. A second signal, or the time limit, ends it."""
        limit_s = self._config.serving.drain_timeout_s
        self._say("draining: new requests are refused; a second signal aborts")
        self._collector.vitals.drain()
        self._collector.tell()
        self._collector.leave(limit_s + ABORT_GRACE_S)
        engine, frontends = self._family.engine, self._family.frontends
        self._turn_until(
            lambda: self._asked > 1 or not engine.alive or not any(child.alive for child in frontends), limit_s
        )
        if not engine.alive and any(child.alive for child in frontends):
            return self._fail((engine,))
        self._shut_down()  # it ends what still runs, and the frontends tell their clients
        self._turn_until(lambda: not self._family.alive, ABORT_GRACE_S)
        self._dismiss()
        return 0

    def _fail(self, dead: Sequence[Child]) -> int:
        """A process has died: tell everybody, and leave with the reason."""
        self._turn_until(self._said_why, LAST_WORDS_S)
        how = self._how(dead[0])
        self._collector.vitals.die(how)  # strangers hear of it too: why is for the log
        self._collector.tell()
        self._turn_until(lambda: self._asked > 1, DEATH_GRACE_S if self._collector.ready else 0.0)
        self._dismiss()
        self._say(f"error: {how}{self._why()}")
        code = dead[0].exit_code
        return code if code is not None and code > 0 else 1

    def _dismiss(self) -> None:
        for child in self._family.alive:
            child.terminate()
        self._turn_until(lambda: not self._family.alive, ABORT_GRACE_S)

    def _shut_down(self) -> None:
        """Ask the engine to end every request and leave; one that still loads does not listen and is stopped."""
        if self._collector.ready is None:
            self._family.engine.terminate()
        else:
            self._engine.send(msgspec.msgpack.encode(Shutdown()))

    def _how(self, child: Child) -> str:
        when = "" if self._collector.ready else " before it was ready"
        return f"the {child.name} process {child.last_words}{when}"

    def _why(self) -> str:
        last = self._collector.last_progress
        return f": {last.detail}" if last is not None and self._said_why() else ""

    def _said_why(self) -> bool:
        last = self._collector.last_progress
        return last is not None and last.stage == FAILED

    def _turn_until(self, done: Callable[[], bool], limit_s: float | None = None) -> None:
        """Serve the sockets until ``done()`` or the time limit; at least one turn."""
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while True:
            self._take_signals()
            self._collector.turn()
            self._show()
            left_s = _TICK_S if deadline is None else min(_TICK_S, deadline - time.monotonic())
            if done() or left_s <= 0:
                return
            self._poller.poll(max(1, round(left_s * 1000)))

    def _take_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._asked += sum(number != signal.SIGCHLD for number in self._signals.recv(4096))

    def _show(self) -> None:
        progress, ready = self._collector.last_progress, self._collector.ready
        if progress is not None and progress != self._shown_progress and not self._announced:
            self._shown_progress = progress
            self._display.progress(progress)
        if ready is not None and not self._announced:
            self._announced = True
            self._display.ready(ready, self._url)

    def _say(self, text: str) -> None:
        self._display.close()
        print(f"radjax: {text}", file=sys.stderr, flush=True)


def _start(
    config: EngineConfig, name: str, engine_module: str, endpoints: Endpoints, listener: socket.socket
) -> Family:
    """Frontends first: they answer ``/livez`` while the engine loads."""
    descriptor = listener.fileno()
    os.set_inheritable(descriptor, True)
    starts = [
        FrontendStart(config=config, name=name, endpoints=endpoints, index=index, socket_fd=descriptor)
        for index in range(config.serving.workers)
    ]
    frontends = tuple(spawn(f"frontend {start.index}", FRONTEND_MODULE, start, (descriptor,)) for start in starts)
    first = EngineStart(config=config, name=name, endpoints=endpoints)
    engine = spawn("engine", engine_module, first, environment=engine_environment())
    return Family(engine, frontends)


def _heard(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor carries the number; a handler must be there for that."""


def _end(family: Family) -> None:
    for child in family.alive:
        child.kill()
