"""Starts the processes of the service, watches them, and ends them; it is also the collector's home.

It binds the port before anything loads and hands the listening socket to every frontend, so that ``/livez``
answers at once. The first process that dies takes the service with it: frontends are told, streams end with
an error, and the launcher leaves with the reason. One of several engines is started again instead (``engines``).
SIGTERM or Ctrl-C drains; a second one aborts.
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

import zmq
from msgspec import structs

from configs import log
from configs.errors import ConfigError
from configs.schema import EngineConfig
from scheduler.commands import PauseGeneration, Ready
from scheduler.start import Endpoints, FrontendStart
from serving.children import Child, spawn
from serving.collector import Collector
from serving.engines import MAX_RESTARTS, Engines
from serving.metrics import Metrics
from serving.startup import Display, display
from serving.tracing import check_tracing
from serving.vitals import stage_of

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


@dataclass(slots=True, frozen=True)
class Family:
    """The child processes."""

    engines: Engines
    frontends: tuple[Child, ...]

    @property
    def members(self) -> tuple[Child, ...]:
        """All of them, the engines first."""
        return (*self.engines.children, *self.frontends)

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
      ConfigError: the address cannot be bound, or what the launch file asks for is not installed.
    """
    log.configure(config.observe, "launcher")
    check_tracing(config.observe)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(bind(config.serving.host, config.serving.port))
        endpoints = Endpoints(stack.enter_context(tempfile.TemporaryDirectory(prefix="radjax-")))
        signals = stack.enter_context(caught_signals())
        context: zmq.Context[zmq.SyncSocket] = stack.enter_context(zmq.Context())
        metrics = make_metrics(config, name)
        collector = Collector(context, endpoints, metrics, config.serving.workers, config.parallel.replicas)
        stack.callback(collector.close)
        engines = Engines(config, name, endpoints, engine_module, context)
        stack.callback(engines.close)
        # frontends first: they answer /livez while the engines load
        family = Family(engines, _frontends(config, name, endpoints, listener))
        stack.callback(_end, family)
        engines.start_first()
        shown = display()
        stack.callback(shown.close)
        return Launcher(config, family, collector, signals, shown, url_of(listener)).run()


def make_metrics(config: EngineConfig, name: str) -> Metrics | None:
    """The figures of a service, where they are wanted (document: M-2)."""
    if not config.observe.metrics:
        return None
    labels = {"model_name": config.model.name or name, "engine_type": "unified"}
    return Metrics(labels, config.observe.metrics_alias, replicas=config.parallel.replicas)


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
        signals: socket.socket,
        shown: Display,
        url: str,
    ) -> None:
        self._config = config
        self._family = family
        self._collector = collector
        self._engines = family.engines
        self._signals = signals
        self._display = shown
        self._url = url
        self._asked = 0
        self._restarting: set[int] = set()
        """Engines that were started again and do not serve yet."""
        self._buried: set[int] = set()
        """Dead engines of which the frontends have heard."""
        self._announced = False
        self._shown_progress = collector.last_progress
        self._poller = zmq.Poller()
        for source in (*collector.sockets, signals.fileno()):
            self._poller.register(source, zmq.POLLIN)

    def run(self) -> int:
        """Until a signal or a death; every child is gone, or about to be killed, afterwards."""
        self._turn_until(lambda: self._asked > 0 or bool(self._mend()))
        return self._drain() if self._asked else self._fail(self._mend())

    def _mend(self) -> tuple[Child, ...]:
        """Start the engines that are to follow, now or again; the dead processes that end the service."""
        first, now_s = self._collector.readies.get(0), time.monotonic()
        if first is not None:
            self._engines.start_others(first)
        for replica in self._restarting & set(self._collector.readies):
            self._restarting.discard(replica)
            self._say(f"engine {replica} serves again")
            if self._collector.vitals.paused:
                self._engines.send(replica, PauseGeneration(call="launcher", mode="in_place"))
        fatal = [child for child in self._family.frontends if not child.alive]
        for replica, child in self._engines.dead.items():
            if self._collector.ready is not None and self._engines.may_restart(replica, now_s):
                self._restart(replica, child, self._collector.ready)
            else:
                fatal.append(child)
        return tuple(fatal)

    def _restart(self, replica: int, child: Child, alike: Ready) -> None:
        said = self._collector.failures.get(replica)
        how = f"the {child.name} process {child.last_words}" + (f": {said}" if said else "")
        self._say(f"{how}; it is started again")
        self._collector.lost(replica, how)
        self._engines.restart(replica, alike, time.monotonic())
        self._collector.begun(replica)
        self._restarting.add(replica)

    def _bury(self) -> None:
        """While the service drains, a dead engine stays dead; the frontends hear of it."""
        for replica, child in self._engines.dead.items():
            if replica not in self._buried:
                self._buried.add(replica)
                self._collector.lost(replica, f"the {child.name} process {child.last_words}")

    def _drain(self) -> int:
        """Let what runs finish, then go. A second signal, or the time limit, ends it."""
        limit_s = self._config.serving.drain_timeout_s
        self._say("draining: new requests are refused; a second signal aborts")
        self._collector.vitals.drain()
        self._collector.tell()
        self._collector.leave(limit_s + ABORT_GRACE_S)
        engines, frontends = self._engines, self._family.frontends

        def drained() -> bool:
            self._bury()
            return self._asked > 1 or not engines.alive or not any(child.alive for child in frontends)

        self._turn_until(drained, limit_s)
        if not engines.alive and any(child.alive for child in frontends):
            return self._fail(engines.children)
        engines.shut_down(self._collector.vitals.serving)  # what still runs ends, and the frontends tell their clients
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

    def _how(self, child: Child) -> str:
        if not self._collector.ready:
            return f"the {child.name} process {child.last_words} before it was ready"
        often = f", although it was started again {MAX_RESTARTS} times in ten minutes" if self._worn_out(child) else ""
        return f"the {child.name} process {child.last_words}{often}"

    def _worn_out(self, child: Child) -> bool:
        """Whether it is an engine that was started again in vain."""
        return self._engines.count > 1 and child in self._engines.children

    def _why(self) -> str:
        return "".join(f": {said}" for said in self._reasons)

    def _said_why(self) -> bool:
        return bool(self._reasons)

    @property
    def _reasons(self) -> list[str]:
        """What dead engines said last; the same words once."""
        failures = self._collector.failures
        return list(dict.fromkeys(failures[replica] for replica in self._engines.dead if replica in failures))

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
            patience_s = self._collector.patience_s
            self._poller.poll(max(1, round(1000 * (left_s if patience_s is None else min(left_s, patience_s)))))

    def _take_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._asked += sum(number != signal.SIGCHLD for number in self._signals.recv(4096))

    def _show(self) -> None:
        progress, ready = self._collector.last_progress, self._collector.ready
        if progress is not None and progress != self._shown_progress and not self._announced:
            self._shown_progress = progress
            self._display.progress(structs.replace(progress, stage=stage_of(progress)))
        if ready is not None and not self._announced:
            self._announced = True
            banner = [*ready.banner, *self._about_replicas()]
            self._display.ready(structs.replace(ready, banner=banner), self._url)

    def _about_replicas(self) -> list[str]:
        parallel = self._config.parallel
        if parallel.replicas == 1:
            return []
        rule = "prefix" if parallel.placement == "auto" else parallel.placement
        return [f"{'replicas':<16} {parallel.replicas}, each as above, one process each; requests are placed by {rule}"]

    def _say(self, text: str) -> None:
        self._display.close()
        print(f"radjax: {text}", file=sys.stderr, flush=True)


def _frontends(config: EngineConfig, name: str, endpoints: Endpoints, listener: socket.socket) -> tuple[Child, ...]:
    """Start every frontend on the listening socket."""
    descriptor = listener.fileno()
    os.set_inheritable(descriptor, True)
    starts = [
        FrontendStart(config=config, name=name, endpoints=endpoints, index=index, socket_fd=descriptor)
        for index in range(config.serving.workers)
    ]
    return tuple(spawn(f"frontend {start.index}", FRONTEND_MODULE, start, (descriptor,)) for start in starts)


def _heard(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor carries the number; a handler must be there for that."""


def _end(family: Family) -> None:
    for child in family.alive:
        child.kill()
