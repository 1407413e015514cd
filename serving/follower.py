"""The launcher of a host that follows: one engine process, no port. It begins, drains and ends with host 0."""

import contextlib
import tempfile
import time
from typing import Final

import zmq

from configs import log
from configs.schema import EngineConfig
from scheduler.start import Endpoints
from serving.children import Child
from serving.collector import Collector
from serving.engines import Engines
from serving.host_link import open_link
from serving.watch import Watch, caught_signals

LAST_WORDS_S: Final = 0.3
LEAVE_S: Final = 1.0
"""For the engine to leave, when that of host 0 has left."""
END_GRACE_S: Final = 10.0
"""Beyond ``serving.drain_timeout_s``, for host 0 to end the service."""


def follow(config: EngineConfig, name: str, engine_module: str) -> int:
    """Follow host 0 until the service ends; returns the exit code of the process."""
    distributed = config.distributed
    log.configure(config.observe, f"launcher-{distributed.rank}")
    with contextlib.ExitStack() as stack:
        endpoints = Endpoints(stack.enter_context(tempfile.TemporaryDirectory(prefix="radjax-")))
        signals = stack.enter_context(caught_signals())
        context: zmq.Context[zmq.SyncSocket] = stack.enter_context(zmq.Context())
        collector = Collector(context, endpoints, None, 0)
        stack.callback(collector.close)
        engines = Engines(config, name, endpoints, engine_module, context)
        stack.callback(engines.close)
        stack.callback(_end, engines)
        hosts = open_link(context, endpoints, config)
        stack.callback(hosts.close)
        where = f"{distributed.coordinator}, as host {distributed.rank} of {distributed.hosts}"
        watch = Watch(collector, hosts, signals, (), where)
        stack.callback(watch.close)
        return Follower(config, engines, watch).run()


class Follower:
    """The life of a host that follows."""

    def __init__(self, config: EngineConfig, engines: Engines, watch: Watch) -> None:
        self._config = config
        self._engines = engines
        self._watch = watch
        self._hosts = watch.hosts

    def run(self) -> int:
        """Until the engine has ended, or must."""
        watch = self._watch
        watch.until(lambda: self._hosts.met or self._hosts.fault is not None or watch.asked > 0)
        if self._hosts.met and not watch.asked:
            self._engines.start_first()
            watch.until(lambda: self._over() or watch.asked > 0)
        if watch.asked and not self._hosts.met:
            self._hosts.leave()
            return 0
        if watch.asked:
            self._ask()
        if self._hosts.over:
            watch.until(lambda: not self._engines.alive, LEAVE_S)
            return 0
        [child] = self._engines.children or [None]
        if child is not None and child.exit_code is not None and self._hosts.fault is None:
            return self._ended(child)
        if self._hosts.fault is None:
            return self._leave("it was told to stop, and host 0 did not end the service")
        return self._leave(self._hosts.fault)

    def _over(self) -> bool:
        return self._hosts.over or self._hosts.fault is not None or not self._engines.alive

    def _ask(self) -> None:
        """Have host 0 drain the service and end it. A second signal does not wait for that."""
        self._watch.say("asking host 0 to drain the service; a second signal aborts")
        self._hosts.leave()
        limit_s = self._config.serving.drain_timeout_s + END_GRACE_S
        self._watch.until(lambda: self._over() or self._watch.asked > 1, limit_s)

    def _ended(self, child: Child) -> int:
        """The engine has gone: as host 0 wanted, or else because of something that another host may know."""
        code = child.exit_code
        if code == 0:
            return 0
        died_s = time.monotonic()
        failures = self._watch.collector.failures
        self._watch.until(lambda: bool(failures), LAST_WORDS_S)
        how = ": ".join([f"the {child.name} process {child.last_words}", *failures.values()])
        self._hosts.die(how)
        self._watch.until(lambda: self._hosts.settled(died_s), self._config.distributed.timeout_s)
        cause = "" if self._hosts.fault is None else f"; {self._hosts.fault}"
        self._watch.say(f"error: {how}{cause}")
        return code if code is not None and code > 0 else 1

    def _leave(self, reason: str) -> int:
        """The service ends here; the engine may be stuck, and is not asked."""
        self._hosts.die(reason)
        self._watch.say(f"error: {reason}")
        return 1


def _end(engines: Engines) -> None:
    for child in engines.children:
        if child.alive:
            child.kill()
