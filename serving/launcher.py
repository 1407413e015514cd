"""Starts the processes of the service, watches them, and ends them; it is also the collector's home.

It binds the port before anything loads and hands the listening socket to every frontend, so that ``/livez``
answers at once. The first process that dies takes the service with it: frontends are told, streams end with
an error, and the launcher leaves with the reason. One of several engines is started again instead (``engines``).
SIGTERM or Ctrl-C drains; a second one aborts.
"""

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import zmq

from configs import log
from configs.distributed import refuse_distributed
from configs.errors import ConfigError
from configs.schema import EngineConfig
from scheduler.commands import PauseGeneration, Ready
from scheduler.start import Endpoints, FrontendStart
from serving.children import Child, spawn
from serving.collector import Collector
from serving.crash_dump import crash_dump_folder
from serving.engines import MAX_RESTARTS, Engines
from serving.follower import follow
from serving.host_link import open_link
from serving.metrics import Metrics
from serving.tracing import check_tracing
from serving.watch import Watch, caught_signals

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
      ConfigError: the address cannot be bound, what the launch file asks for is not installed, or several hosts cannot
        do it.
    """
    refuse_distributed(config)
    if config.distributed.rank:
        return follow(config, name, engine_module)
    log.configure(config.observe, "launcher")
    check_tracing(config.observe)
    crash_dump_folder(config.observe)
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
        hosts = open_link(context, endpoints, config)
        stack.callback(hosts.close)
        watch = Watch(collector, hosts, signals, _about_others(config), url_of(listener))
        stack.callback(watch.close)
        return Launcher(config, family, watch).run()


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


class Launcher:
    """The life of the service from when its frontends run; the engines are started when all hosts are there."""

    def __init__(self, config: EngineConfig, family: Family, watch: Watch) -> None:
        self._config = config
        self._family = family
        self._watch = watch
        self._collector = watch.collector
        self._hosts = watch.hosts
        self._engines = family.engines
        self._restarting: set[int] = set()
        """Engines that were started again and do not serve yet."""
        self._buried: set[int] = set()
        """Dead engines of which the frontends have heard."""

    def run(self) -> int:
        """Until a signal or a death; every child is gone, or about to be killed, afterwards."""
        self._watch.until(lambda: self._hosts.met or self._over())
        if self._hosts.met:
            self._engines.start_first()
            self._watch.until(self._over)
        if self._watch.asked:
            return self._drain() if self._hosts.met else self._give_up()
        return self._fail(self._mend()) if self._hosts.fault is None else self._forsake(self._hosts.fault)

    def _over(self) -> bool:
        """Whether the service is to end."""
        return self._watch.asked > 0 or self._hosts.fault is not None or bool(self._mend())

    def _mend(self) -> tuple[Child, ...]:
        """Start the engines that are to follow, now or again; the dead processes that end the service."""
        first, now_s = self._collector.readies.get(0), time.monotonic()
        if first is not None:
            self._engines.start_others(first)
        for replica in self._restarting & set(self._collector.readies):
            self._restarting.discard(replica)
            self._watch.say(f"engine {replica} serves again")
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
        self._watch.say(f"{how}; it is started again")
        self._collector.lost(replica, how)
        self._engines.restart(replica, alike, time.monotonic())
        self._collector.begun(replica)
        self._restarting.add(replica)

    def _give_up(self) -> int:
        """Told to stop before all hosts were there; no engine runs."""
        self._hosts.die("host 0 was told to stop")
        self._dismiss()
        return 0

    def _bury(self) -> None:
        """While the service drains, a dead engine stays dead; the frontends hear of it."""
        for replica, child in self._engines.dead.items():
            if replica not in self._buried:
                self._buried.add(replica)
                self._collector.lost(replica, f"the {child.name} process {child.last_words}")

    def _drain(self) -> int:
        """Let what runs finish, then go. A second signal, or the time limit, ends it."""
        limit_s = self._config.serving.drain_timeout_s
        self._watch.say("draining: new requests are refused; a second signal aborts")
        self._collector.vitals.drain()
        self._collector.tell()
        self._collector.leave(limit_s + ABORT_GRACE_S)
        engines, frontends = self._engines, self._family.frontends

        def drained() -> bool:
            self._bury()
            over = self._watch.asked > 1 or self._hosts.fault is not None
            return over or not engines.alive or not any(child.alive for child in frontends)

        self._watch.until(drained, limit_s)
        if self._hosts.fault is not None:
            return self._forsake(self._hosts.fault)
        if not engines.alive and any(child.alive for child in frontends):
            return self._fail(engines.children)
        engines.shut_down(self._collector.vitals.serving)  # what still runs ends, and the frontends tell their clients
        self._watch.until(lambda: not self._family.alive, ABORT_GRACE_S)
        self._hosts.end()
        self._dismiss()
        return 0

    def _fail(self, dead: Sequence[Child]) -> int:
        """A process has died: tell everybody, and leave with the reason, which may lie on another host."""
        died_s = time.monotonic()
        self._watch.until(self._said_why, LAST_WORDS_S)
        how = self._how(dead[0])
        self._end_streams(how)
        self._hosts.die(f"{how}{self._why()}")
        self._watch.until(lambda: self._hosts.settled(died_s), self._config.distributed.timeout_s)
        code = dead[0].exit_code
        cause = "" if self._hosts.fault is None else f"; {self._hosts.fault}"
        return self._leave(f"{how}{self._why()}{cause}", code if code is not None and code > 0 else 1)

    def _forsake(self, fault: str) -> int:
        """Another host has ended, or plans something else: end, too. The engine may be stuck, and is not asked."""
        self._end_streams("another host of the service has ended")
        self._hosts.die(fault)
        for child in self._engines.children:
            child.kill()
        return self._leave(fault, 1)

    def _end_streams(self, how: str) -> None:
        """Strangers hear of it too: why is for the log."""
        self._collector.vitals.die(how)
        self._collector.tell()

    def _leave(self, reason: str, code: int) -> int:
        self._watch.until(lambda: self._watch.asked > 1, DEATH_GRACE_S if self._collector.ready else 0.0)
        self._dismiss()
        self._watch.say(f"error: {reason}")
        return code

    def _dismiss(self) -> None:
        for child in self._family.alive:
            child.terminate()
        self._watch.until(lambda: not self._family.alive, ABORT_GRACE_S)

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


def _about_others(config: EngineConfig) -> list[str]:
    """Lines of the banner: the engine is one of several, or over several hosts."""
    parallel, hosts = config.parallel, config.distributed.hosts
    if hosts > 1:
        return [f"{'hosts':<16} {hosts}, of {parallel.devices // hosts} devices each; this is host 0"]
    if parallel.replicas == 1:
        return []
    rule = "prefix" if parallel.placement == "auto" else parallel.placement
    return [f"{'replicas':<16} {parallel.replicas}, each as above, one process each; requests are placed by {rule}"]


def _frontends(config: EngineConfig, name: str, endpoints: Endpoints, listener: socket.socket) -> tuple[Child, ...]:
    """Start every frontend on the listening socket."""
    descriptor = listener.fileno()
    os.set_inheritable(descriptor, True)
    starts = [
        FrontendStart(config=config, name=name, endpoints=endpoints, index=index, socket_fd=descriptor)
        for index in range(config.serving.workers)
    ]
    return tuple(spawn(f"frontend {start.index}", FRONTEND_MODULE, start, (descriptor,)) for start in starts)


def _end(family: Family) -> None:
    for child in family.alive:
        child.kill()
