"""StepStats and RequestStats as Prometheus metrics. Names are API: they keep the field's stems after ``radjax_``.

Requests are counted when their frontend reports them, so that the sums equal the usage that clients were told;
what only the engine knows comes as totals, and a counter follows its total without ever going down.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from scheduler.commands import Ready, RequestStats, StepStats

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PROBE: Final = "/health_generate"
MAX_GAPS: Final = 4096
"""Inter-token gaps taken from one request."""

_FIRST_TOKEN_S: Final = (
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.4,
    0.6,
    0.8,
    1,
    2,
    4,
    6,
    8,
    10,
    20,
    40,
    60,
    80,
    100,
    200,
    400,
)
_GAP_S: Final = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08),
    *(0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8),
)
_WHOLE_S: Final = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400, 600, 1200, 1800, 2400)
_QUEUE_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 1200, 3000)

_GAUGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "num_running_reqs": "Requests that run now.",
        "num_queue_reqs": "Requests that wait to run.",
        "num_used_tokens": "Tokens of the KV pool that running requests hold, in whole pages.",
        "num_cached_tokens": "Tokens of the KV pool that only the prefix cache holds.",
        "max_total_num_tokens": "Tokens that the KV pool can hold.",
        "token_usage": "Share of the KV pool that running requests hold, 0 to 1.",
        "gen_throughput": "Output tokens a second over the recent window; 0 when idle.",
        "cache_hit_rate": "Prompt tokens taken from the prefix cache ÷ prompt tokens, since start.",
        "new_token_ratio": "Share of its output that an admitted request is assumed to need.",
        "max_running_requests": "Requests that may run at once.",
    }
)
_TOTALS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "retractions": ("num_retracted_requests", "Times that a running request gave its pages back to be recomputed."),
        "preemptions": ("num_preempted_requests", "Times that a running request gave way to a more urgent one."),
        "displaced": ("num_displaced_requests", "Requests dropped from a full queue for a more urgent one."),
        "waiting_timeouts": ("num_waiting_timeouts", "Requests that waited for too long and were refused."),
        "running_timeouts": ("num_running_timeouts", "Requests that ran for too long and were aborted."),
        "evicted_tokens": ("evicted_tokens", "Tokens that the prefix cache forgot to make room."),
        "late_compiles": ("late_compiles", "Programs compiled on the engine's thread after it was ready."),
        "scheduled_tokens": ("step_tokens", "Tokens computed by steps, without padding."),
        "padded_tokens": ("padded_tokens", "Tokens of padding computed by steps."),
        "steps_decode": ("decode_steps", "Steps of the decode family."),
        "steps_mixed": ("mixed_steps", "Steps of the mixed family."),
        "steps_score": ("score_steps", "Steps of the score family."),
    }
)
"""Field of StepStats → stem of the counter, and its help."""


class Metrics:
    """The registry of the service. ``labels`` are on every metric."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        disable_created_metrics()  # a second series for every counter, which nobody reads
        self._registry = CollectorRegistry(auto_describe=True)
        self._labels = dict(labels)
        self._gauges = {stem: self._gauge(stem, text) for stem, text in _GAUGES.items()}
        self._totals = {name: self._counter(stem, text) for name, (stem, text) in _TOTALS.items()}
        self._seen: dict[tuple[int, str], int] = {}
        self._requests = Counter(
            "radjax_num_requests", "Requests ended, by outcome.", [*labels, "outcome"], registry=self._registry
        )
        self._aborted = self._counter("num_aborted_requests", "Requests ended before they were complete.")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of ended requests.")
        self._generated = self._counter("generation_tokens", "Output tokens of ended requests.")
        self._cached = self._counter("cached_tokens", "Prompt tokens of ended requests that came from the cache.")
        self._first = self._histogram("time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN_S)
        self._gap = self._histogram("inter_token_latency_seconds", "Between one token and the next.", _GAP_S)
        self._whole = self._histogram("e2e_request_latency_seconds", "Arrival to the end.", _WHOLE_S)
        self._queue = self._histogram("queue_time_seconds", "Arrival to admission.", _QUEUE_S)
        for outcome in ("stop", "length", "abort", "rejected", "error"):
            self._requests.labels(**self._labels, outcome=outcome)

    def ready(self, ready: Ready) -> None:
        """Take the sizes that the engine reported once."""
        self._gauges["max_total_num_tokens"].set(ready.max_total_num_tokens)
        self._gauges["max_running_requests"].set(ready.max_running_requests)

    def step(self, newest: Mapping[int, StepStats]) -> None:
        """Take the newest figures of every replica."""
        all_stats = newest.values()
        pool = sum(stats.tokens_total for stats in all_stats)
        used = sum(stats.tokens_used for stats in all_stats)
        prompt = sum(stats.prompt_tokens for stats in all_stats)
        cached = sum(stats.cached_tokens for stats in all_stats)
        for stem, value in (
            ("num_running_reqs", sum(stats.num_running for stats in all_stats)),
            ("num_queue_reqs", sum(stats.num_queued for stats in all_stats)),
            ("num_used_tokens", used),
            ("num_cached_tokens", sum(stats.tokens_cached for stats in all_stats)),
            ("max_total_num_tokens", pool),
            ("token_usage", min(1.0, used / pool) if pool else 0.0),
            ("gen_throughput", sum(stats.gen_throughput for stats in all_stats)),
            ("cache_hit_rate", cached / prompt if prompt else 0.0),
            ("new_token_ratio", max((stats.new_token_ratio for stats in all_stats), default=0.0)),
        ):
            self._gauges[stem].set(value)
        for stats in all_stats:
            self._follow(stats)

    def request(self, stats: RequestStats) -> None:
        """Count one ended request; the service's own probes are none."""
        if stats.endpoint == PROBE:
            return
        self._requests.labels(**self._labels, outcome=stats.outcome).inc()
        if stats.outcome == "rejected":
            return
        if stats.outcome in ("abort", "error"):
            self._aborted.inc()
        self._prompt.inc(stats.prompt_tokens)
        self._generated.inc(stats.output_tokens)
        self._cached.inc(stats.cached_tokens)
        self._whole.observe(stats.e2e_s)
        self._queue.observe(stats.queue_s)
        if stats.ttft_s is not None:
            self._first.observe(stats.ttft_s)
        for gap in stats.inter_token_s[:MAX_GAPS]:
            self._gap.observe(gap)

    def render(self) -> bytes:
        """The text exposition format (``CONTENT_TYPE``)."""
        return generate_latest(self._registry)

    def _follow(self, stats: StepStats) -> None:
        values = {
            "retractions": stats.retractions,
            "preemptions": stats.preemptions,
            "displaced": stats.displaced,
            "waiting_timeouts": stats.waiting_timeouts,
            "running_timeouts": stats.running_timeouts,
            "evicted_tokens": stats.evicted_tokens,
            "late_compiles": stats.late_compiles,
            "scheduled_tokens": stats.scheduled_tokens,
            "padded_tokens": stats.padded_tokens,
            "steps_decode": stats.steps_decode,
            "steps_mixed": stats.steps_mixed,
            "steps_score": stats.steps_score,
        }
        for name, total in values.items():
            seen = self._seen.get((stats.replica, name), 0)
            if total > seen:
                self._totals[name].inc(total - seen)
                self._seen[stats.replica, name] = total

    def _gauge(self, stem: str, text: str) -> Gauge:
        return Gauge(f"radjax_{stem}", text, list(self._labels), registry=self._registry).labels(**self._labels)

    def _counter(self, stem: str, text: str) -> Counter:
        return Counter(f"radjax_{stem}", text, list(self._labels), registry=self._registry).labels(**self._labels)

    def _histogram(self, stem: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(f"radjax_{stem}", text, list(self._labels), buckets=buckets, registry=self._registry)
        return family.labels(**self._labels)
