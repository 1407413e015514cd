"""Ended requests and HTTP exchanges, as families. Requests are counted when their frontend reports them.

So the sums equal the usage that clients were told.
"""

from collections.abc import Iterator
from itertools import product
from typing import Final

from scheduler.commands import RequestStats
from serving.collector_wire import HttpStats
from serving.metrics_family import Counts, Family, Histograms, Labels

MAX_GAPS: Final = 4096
"""Inter-token gaps taken from one request."""
OUTCOMES: Final = ("stop", "length", "abort", "rejected", "error")
STREAMING: Final = ("false", "true")

FIRST_TOKEN_S: Final = (
    *(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.4, 0.5, 0.6, 0.75, 0.8),
    *(1, 2, 2.5, 4, 5, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400),
)
GAP_S: Final = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.075, 0.08),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 2, 4, 6, 8),
)
WHOLE_S: Final = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400, 600, 1200, 1800, 2400)
QUEUE_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 1200, 3000)
STAGE_S: Final = tuple(round(0.001 * 1.62**i, 6) for i in range(30))
TOKENS: Final = (
    1,
    10,
    50,
    100,
    300,
    500,
    1000,
    2000,
    5000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
)
CHOICES: Final = (1, 2, 5, 10, 20)
RETRACTIONS: Final = (0, 1, 2, 5, 10, 20)
HTTP_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class RequestFigures:
    """A ``Source``: requests that ended."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        streaming = [(each,) for each in STREAMING]
        self._ended = Counts(("outcome", "is_streaming"), product(OUTCOMES, STREAMING))
        self._refused = Counts(("reason",))
        self._tokens = {
            stem: (text, Counts(("is_streaming",), streaming))
            for stem, text in (
                ("prompt_tokens", "Prompt tokens of ended requests."),
                ("generation_tokens", "Output tokens of ended requests."),
                ("cached_tokens", "Prompt tokens of ended requests that came from the cache."),
                ("num_aborted_requests", "Requests ended before they were complete."),
            )
        }
        self._histograms = {
            stem: (text, Histograms(("is_streaming",), bounds, streaming))
            for stem, text, bounds in (
                ("time_to_first_token_seconds", "Arrival to first token.", FIRST_TOKEN_S),
                ("inter_token_latency_seconds", "Between one token and the next.", GAP_S),
                ("request_time_per_output_token_seconds", "Mean time between tokens of a request.", GAP_S),
                ("e2e_request_latency_seconds", "Arrival to the end.", WHOLE_S),
                ("queue_time_seconds", "Arrival to admission.", QUEUE_S),
                ("request_inference_time_seconds", "Admission to the end.", WHOLE_S),
                ("request_prefill_time_seconds", "Admission to first token.", WHOLE_S),
                ("request_decode_time_seconds", "First token to the end.", WHOLE_S),
                ("prompt_tokens_histogram", "Prompt tokens of a request.", TOKENS),
                ("uncached_prompt_tokens_histogram", "Prompt tokens of a request that were computed.", TOKENS),
                ("generation_tokens_histogram", "Output tokens of a request.", TOKENS),
                ("request_params_max_tokens", "Output tokens that a request may have.", TOKENS),
                ("request_params_n", "Choices of a call.", CHOICES),
                ("request_num_retractions", "Times that a request was retracted.", RETRACTIONS),
            )
        }
        self._stages = Histograms(("stage",), STAGE_S, [(stage,) for stage in ("queue", "prefill", "decode")])

    def request(self, stats: RequestStats) -> None:
        """Count one request."""
        streaming = (STREAMING[stats.streaming],)
        self._ended.add((stats.outcome, *streaming))
        if stats.outcome == "rejected":
            self._refused.add((stats.refusal,))
            return
        for stem, amount in (
            ("prompt_tokens", stats.prompt_tokens),
            ("generation_tokens", stats.output_tokens),
            ("cached_tokens", stats.cached_tokens),
            ("num_aborted_requests", stats.outcome in ("abort", "error")),
        ):
            self._tokens[stem][1].add(streaming, amount)
        for stem, value in (
            ("e2e_request_latency_seconds", stats.e2e_s),
            ("queue_time_seconds", stats.queue_s),
            ("request_inference_time_seconds", stats.prefill_s + stats.decode_s),
            ("request_prefill_time_seconds", stats.prefill_s),
            ("request_decode_time_seconds", stats.decode_s),
            ("prompt_tokens_histogram", stats.prompt_tokens),
            ("uncached_prompt_tokens_histogram", stats.prompt_tokens - stats.cached_tokens),
            ("generation_tokens_histogram", stats.output_tokens),
            ("request_params_max_tokens", stats.max_tokens),
            ("request_params_n", stats.choices),
            ("request_num_retractions", stats.retractions),
        ):
            self._histograms[stem][1].observe(streaming, value)
        for stage, value in (("queue", stats.queue_s), ("prefill", stats.prefill_s), ("decode", stats.decode_s)):
            self._stages.observe((stage,), value)
        self._paces(stats, streaming)

    def families(self) -> Iterator[Family]:
        """See ``Source``."""
        labels = self._labels
        yield Family("num_requests", "counter", "Requests ended, by outcome.", self._ended.samples(labels))
        yield Family("num_rejected_requests", "counter", "Requests refused, by reason.", self._refused.samples(labels))
        for stem, (text, counts) in self._tokens.items():
            yield Family(stem, "counter", text, counts.samples(labels))
        for stem, (text, histograms) in self._histograms.items():
            yield Family(stem, "histogram", text, histograms.samples(labels))
        stages = self._stages.samples(labels)
        yield Family("per_stage_req_latency_seconds", "histogram", "Time of a request in a stage.", stages)

    def _paces(self, stats: RequestStats, streaming: tuple[str, ...]) -> None:
        if stats.ttft_s is not None:
            self._histograms["time_to_first_token_seconds"][1].observe(streaming, stats.ttft_s)
        for gap in stats.inter_token_s[:MAX_GAPS]:
            self._histograms["inter_token_latency_seconds"][1].observe(streaming, gap)
        if stats.output_tokens > 1:
            each_s = stats.decode_s / (stats.output_tokens - 1)
            self._histograms["request_time_per_output_token_seconds"][1].observe(streaming, each_s)


class HttpFigures:
    """A ``Source``: HTTP exchanges of all frontends."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._begun = Counts(("endpoint", "method"))
        self._active = Counts(("endpoint", "method"))
        self._answered = Counts(("endpoint", "method", "status_code"))
        self._seconds = Histograms(("endpoint", "method"), HTTP_S)

    def http(self, stats: HttpStats) -> None:
        """Count the beginning or the end of an exchange."""
        key = stats.endpoint, stats.method
        if stats.status is None:
            self._begun.add(key)
            self._active.add(key)
            return
        self._active.add(key, -1)
        self._answered.add((*key, str(stats.status)))
        self._seconds.observe(key, stats.seconds)

    def families(self) -> Iterator[Family]:
        """See ``Source``."""
        labels = self._labels
        begun, answered = self._begun.samples(labels), self._answered.samples(labels)
        yield Family("http_requests", "counter", "HTTP requests, by route.", begun)
        yield Family("http_responses", "counter", "HTTP responses, by route and status.", answered)
        active = self._active.samples(labels)
        yield Family("http_requests_active", "gauge", "HTTP requests that are open.", active)
        yield Family("http_request_duration_seconds", "histogram", "To the last byte.", self._seconds.samples(labels))
