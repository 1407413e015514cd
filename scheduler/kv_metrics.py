"""The state of the KV cache for a router, pushed over ZeroMQ with the reports (document: M-9)."""

import zmq
from msgspec import Struct, msgpack

from configs.errors import ConfigError
from scheduler.cadence import Cadence
from scheduler.commands import StepStats
from scheduler.observe import Event

MAX_UNSENT = 1024


class KvMetrics(Struct, frozen=True, kw_only=True, array_like=True, tag=True):
    """The documents' record. A block is a page; active are those of running requests."""

    request_active_slots: int
    request_total_slots: int
    kv_active_blocks: int
    kv_total_blocks: int
    num_requests_waiting: int
    gpu_cache_usage_perc: float
    gpu_prefix_cache_hit_rate: float
    data_parallel_rank: int


class KvMetricsPusher:
    """An ``Observer`` with a PUSH socket. Belongs to the engine's thread.

    Args:
        context: of the process.
        endpoint: that the receiver has bound.
        page_size: tokens of a page.
        max_rows: requests that can run at a time.
        interval: decode steps from one report to the next.

    Raises:
        ConfigError: the address cannot be used.
    """

    def __init__(
        self, context: "zmq.Context[zmq.SyncSocket]", endpoint: str, page_size: int, max_rows: int, interval: int
    ) -> None:
        self._page_size = page_size
        self._max_rows = max_rows
        self._cadence = Cadence(interval)
        self._encoder = msgpack.Encoder()
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, MAX_UNSENT)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            message = f"cannot be used: {error.strerror}"
            raise ConfigError(message, key="observe.kv_metrics_endpoint", value=endpoint) from error

    def observe(self, event: Event) -> None:
        """Take one event. What the receiver does not read in time is lost; a closed socket sends nothing."""
        if not isinstance(event, StepStats) or self._cadence.due(event) is None or self._socket.closed:
            return
        try:
            self._socket.send(self._encoder.encode(self._record(event)), zmq.NOBLOCK)
        except zmq.Again:
            return

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _record(self, stats: StepStats) -> KvMetrics:
        return KvMetrics(
            request_active_slots=stats.num_running,
            request_total_slots=self._max_rows,
            kv_active_blocks=stats.tokens_used // self._page_size,
            kv_total_blocks=stats.tokens_total // self._page_size,
            num_requests_waiting=stats.num_queued,
            gpu_cache_usage_perc=stats.tokens_used / stats.tokens_total if stats.tokens_total else 0.0,
            gpu_prefix_cache_hit_rate=stats.cached_tokens / stats.prompt_tokens if stats.prompt_tokens else 0.0,
            data_parallel_rank=stats.replica,
        )
