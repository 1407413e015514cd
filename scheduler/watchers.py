"""Who watches an engine beside its figures, put together from the launch file: KV events, KV metrics, watchdog."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import zmq

from configs.schema import Observe, Parallel, Resolved
from scheduler.cache_listener import CacheListener
from scheduler.engine import Engine
from scheduler.forward_count import ForwardCount
from scheduler.kv_events import KVEvents
from scheduler.kv_metrics import KvMetricsPusher
from scheduler.kv_publisher import KVPublisher, endpoint_of
from scheduler.lifecycle import Lifecycle
from scheduler.observe import Observer
from scheduler.state import dp_rank, dump_text
from scheduler.watchdog import Heartbeat, Patience, Watchdog

OnStuck = Callable[[str], None]

logger = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True)
class Watchers:
    """Observers and a listener for an engine in the making; they are closed by ``close``."""

    observers: tuple[Observer, ...]
    listener: CacheListener | None
    heartbeat: Heartbeat
    patience: Patience
    closing: ExitStack

    @contextmanager
    def over(self, engine: Engine, on_stuck: OnStuck | None) -> Generator[None]:
        """Watch the engine while its loop runs. An error that ends it finds the state in the log.

        SIGUSR1 has the state logged, where this is the main thread. Without ``on_stuck`` an engine that is stuck is
        reported and left alone.
        """

        def dump() -> str:
            return dump_text(engine.state())

        patience = self.patience if on_stuck is not None else self.patience._replace(hard_s=0.0)
        watchdog = Watchdog(self.heartbeat, patience, dump, on_stuck or logger.critical)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, lambda number, frame: watchdog.ask())
        watchdog.start()
        try:
            yield
        except Exception:
            logger.critical("the scheduler failed; its state: %s", dump())
            raise
        finally:
            watchdog.close()

    def close(self) -> None:
        """Close the sockets."""
        self.closing.close()


def open_watchers(observe: Observe, parallel: Parallel, resolved: Resolved, replica: int) -> Watchers:
    """What a launch file asks for.

    Raises:
        ConfigError: an address cannot be used.
    """
    heartbeat = Heartbeat()
    observers: list[Observer] = [heartbeat, ForwardCount()]
    listener: KVEvents | None = None
    interval = observe.decode_log_interval
    with ExitStack() as closing:
        if observe.request_lifecycle:
            observers.append(Lifecycle(time.time))
        if observe.kv_events_endpoint is not None or (observe.kv_metrics_endpoint is not None and observe.metrics):
            context: zmq.Context[zmq.SyncSocket] = closing.enter_context(zmq.Context())
            if observe.kv_events_endpoint is not None:
                again = observe.kv_events_replay_endpoint
                publisher = KVPublisher(
                    context,
                    endpoint_of(observe.kv_events_endpoint, replica),
                    None if again is None else endpoint_of(again, replica),
                    observe.kv_events_topic,
                    observe.kv_events_buffer,
                    dp_rank(parallel, replica),
                )
                closing.callback(publisher.close)
                listener = KVEvents(resolved.page_size, interval, publisher.publish)
                observers.append(listener)
            if observe.kv_metrics_endpoint is not None and observe.metrics:
                rows = resolved.max_running_requests
                pusher = KvMetricsPusher(context, observe.kv_metrics_endpoint, resolved.page_size, rows, interval)
                closing.callback(pusher.close)
                observers.append(pusher)
        patience = Patience(observe.watchdog_soft_s, observe.watchdog_hard_s)
        return Watchers(tuple(observers), listener, heartbeat, patience, closing.pop_all())
