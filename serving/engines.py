"""The engine processes of a service, one a replica: started, started again, told to end.

The first starts alone and the others when it serves: what it compiled they read from the cache, and the size of pool
that it decided they are given. One that dies later is started again, so often and no more.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec
import zmq

from configs.distributed import for_host
from configs.env import engine_environment
from configs.replicas import for_replica, with_pool
from configs.schema import EngineConfig
from scheduler.commands import Command, Ready, Shutdown
from scheduler.start import Endpoints, EngineStart, frontend_id
from serving.children import Child, spawn

LAUNCHER: Final = 9999
"""The launcher's ``Origin``: a number that no frontend has."""
MAX_RESTARTS: Final = 3
"""Of one replica within ``RESTART_WINDOW_S``."""
RESTART_WINDOW_S: Final = 600.0


def may_restart(restarts: Sequence[float], now_s: float) -> bool:
    """Whether a replica that was started again at these times may be once more."""
    return sum(now_s - restart_s < RESTART_WINDOW_S for restart_s in restarts) < MAX_RESTARTS


class Engines:
    """All of them, dead or alive.

    Args:
        config: the launch file.
        name: its name.
        endpoints: the addresses.
        module: what an engine process runs.
        context: of this process, for the launcher's own way to the engines.
    """

    def __init__(
        self,
        config: EngineConfig,
        name: str,
        endpoints: Endpoints,
        module: str,
        context: "zmq.Context[zmq.SyncSocket]",
    ) -> None:
        self._config = config
        self._name = name
        self._endpoints = endpoints
        self._module = module
        self._context = context
        self._children: dict[int, Child] = {}
        self._sockets: dict[int, zmq.SyncSocket] = {}
        self._lives: dict[int, int] = {}
        self._restarts = [deque[float](maxlen=MAX_RESTARTS) for _ in range(self.count)]

    @property
    def count(self) -> int:
        """How many replicas there are to be."""
        return self._config.parallel.replicas

    @property
    def children(self) -> tuple[Child, ...]:
        """Those that were started, the newest life of each."""
        return tuple(child for _, child in sorted(self._children.items()))

    @property
    def dead(self) -> dict[int, Child]:
        """Those that were started and do not run, by their numbers."""
        return {replica: child for replica, child in self._children.items() if not child.alive}

    @property
    def alive(self) -> bool:
        """Whether any runs."""
        return any(child.alive for child in self._children.values())

    def start_first(self) -> None:
        """Start the one that the others follow; all that are to be share the memory that is free now."""
        self._start(0, self._config, self.count)

    def start_others(self, first: Ready) -> None:
        """Start the others, as large as ``first`` said of itself. Once only."""
        if len(self._children) == self.count:
            return
        config = with_pool(self._config, first.max_total_num_tokens)
        for replica in range(1, self.count):
            self._start(replica, config, self.count - 1)

    def may_restart(self, replica: int, now_s: float) -> bool:
        """Whether a dead one may be started again."""
        return self.count > 1 and may_restart(self._restarts[replica], now_s)

    def restart(self, replica: int, first: Ready, now_s: float) -> None:
        """Start a dead one again, as large as it was."""
        self._restarts[replica].append(now_s)
        self._lives[replica] += 1
        self._start(replica, with_pool(self._config, first.max_total_num_tokens), 1)

    def send(self, replica: int, command: Command) -> None:
        """Tell one something; answers are not read."""
        self._sockets[replica].send(msgspec.msgpack.encode(command))

    def shut_down(self, listening: Sequence[int]) -> None:
        """Ask those that listen to end every request and leave; one that still loads does not, and is stopped."""
        for replica, child in self._children.items():
            if replica not in listening:
                child.terminate()
            elif child.alive:
                self.send(replica, Shutdown())

    def close(self) -> None:
        """Close the sockets."""
        for socket in self._sockets.values():
            socket.close(linger=0)

    def _start(self, replica: int, config: EngineConfig, sharing: int) -> None:
        life = self._lives.setdefault(replica, 0)
        start = EngineStart(
            config=for_replica(for_host(config), replica, life),
            name=self._name,
            endpoints=self._endpoints,
            replica=replica,
            life=life,
            sharing=sharing,
        )
        name = f"engine {replica}" if self.count > 1 else "engine"
        self._children[replica] = spawn(name, self._module, start, environment=engine_environment())
        if replica in self._sockets:
            self._sockets[replica].close(linger=0)
        socket = self._sockets[replica] = self._context.socket(zmq.DEALER)
        socket.set(zmq.IDENTITY, frontend_id(LAUNCHER))
        socket.set(zmq.LINGER, 0)
        socket.connect(self._endpoints.engine(replica, life))
