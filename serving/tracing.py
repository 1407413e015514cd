"""A span for every request to an OpenTelemetry collector, with the GenAI conventions and vLLM's names for latencies.

The packages are an extra; they are imported when ``observe.otlp_endpoint`` asks for them and not before.
"""

import importlib.util
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from configs.errors import ConfigError
from configs.schema import Observe
from scheduler.commands import Delta, Finished, FinishReason, Generate, Rejected, RequestTimes
from serving.listener import PROBES

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

NEEDED: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
SPAN: Final = "llm_request"
"""As vLLM calls it."""
OPERATION: Final = "text_completion"
"""What an engine does, of chats too."""
STAGES: Final = ("queue", "prefill", "decode")
EXPORT_TIMEOUT_S: Final = 2


def check_tracing(observe: Observe, found: Callable[[str], object | None] = importlib.util.find_spec) -> None:
    """See that what is asked for is a URL and installed. ``found`` says where a module is, if anywhere.

    Raises:
        ConfigError: it is not.
    """
    if observe.otlp_endpoint is None:
        return
    if not observe.otlp_endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            "bad value",
            key="observe.otlp_endpoint",
            value=observe.otlp_endpoint,
            suggestion="allowed: a URL, as http://127.0.0.1:4318/v1/traces",
        )
    try:
        missing = [name for name in NEEDED if found(name) is None]
    except ModuleNotFoundError:  # a package above it
        missing = [*NEEDED]
    if missing:
        raise ConfigError(
            f"{missing[0]} is not installed",
            key="observe.otlp_endpoint",
            value=observe.otlp_endpoint,
            suggestion="pip install -c constraints.txt '.[otel]'",
        )


@dataclass(slots=True)
class _Open:
    span: "Span"
    sent_ns: int
    first_ns: int = 0


class Tracing:
    """A listener of requests (see ``ListenedLink``) that makes a span of each, from its way to the engine to its end.

    Args:
        tracer: makes spans.
        model: the served name.
        clock: nanoseconds since the epoch.
        close: sends what is left.
    """

    def __init__(
        self,
        tracer: "Tracer",
        model: str,
        clock: Callable[[], int] = time.time_ns,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.close = close
        self._tracer = tracer
        self._model = model
        self._clock = clock
        self._open: dict[str, _Open] = {}

    def sent(self, request: Generate) -> None:
        """A request goes to the engine; it may go to another one, once more."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if request.rid.startswith(PROBES) or request.rid in self._open:
            return
        carrier = {} if request.trace is None else {"traceparent": request.trace}
        params, now_ns = request.params, self._clock()
        span = self._tracer.start_span(
            SPAN,
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.SERVER,
            start_time=now_ns,
            attributes={
                "gen_ai.operation.name": OPERATION,
                "gen_ai.provider.name": "radjax",
                "gen_ai.request.model": self._model,
                "gen_ai.request.id": request.group or request.rid,
                "gen_ai.response.id": request.rid,
                "gen_ai.request.max_tokens": params.max_new_tokens,
                "gen_ai.request.temperature": params.temperature,
                "gen_ai.request.top_p": params.top_p,
                "gen_ai.usage.input_tokens": len(request.prompt),
            },
        )
        self._open[request.rid] = _Open(span, now_ns)

    def said(self, delta: Delta) -> None:
        """New tokens of a request."""
        entry = self._open.get(delta.rid)
        if entry is not None and delta.tokens and not entry.first_ns:
            entry.first_ns = self._clock()

    def finished(self, answer: Finished) -> None:
        """A request has ended."""
        self.said(answer.delta)
        entry = self._open.pop(answer.rid, None)
        if entry is None:
            return
        now_ns = self._clock()
        entry.span.set_attributes(
            {
                "gen_ai.usage.output_tokens": answer.output_tokens,
                "gen_ai.usage.cache_read.input_tokens": answer.cached_tokens,
                "gen_ai.response.finish_reasons": (answer.reason.value,),
                "gen_ai.latency.e2e": (now_ns - entry.sent_ns) / 1e9,
                **_latencies(answer),
                "gen_ai.latency.time_to_first_token": _seconds(entry.sent_ns, entry.first_ns),
            }
        )
        if answer.reason is FinishReason.ABORT:
            entry.span.set_attribute("error.type", f"aborted: {answer.cause.value}")
        self._add_stages(entry, answer.times)
        entry.span.end(now_ns)

    def rejected(self, answer: Rejected) -> None:
        """A request was refused."""
        self._fail(answer.rid, answer.code)

    def lost(self, rids: Collection[str], reason: str) -> None:
        """Their engine died."""
        for rid in rids:
            self._fail(rid, "engine_dead")

    def _add_stages(self, entry: _Open, times: RequestTimes) -> None:
        """A span below the request's own for each stage that it came to; the engine's clock begins when it was sent."""
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(entry.span)
        moments = [times.arrived_ns, times.admitted_ns, times.first_token_ns, times.finished_ns]
        for name, (start_ns, then_ns) in zip(STAGES, pairwise(moments), strict=True):
            if start_ns:
                first_ns = entry.sent_ns + start_ns - times.arrived_ns
                span = self._tracer.start_span(name, context=context, start_time=first_ns)
                span.end(first_ns + max(0, (then_ns or times.finished_ns) - start_ns))

    def _fail(self, rid: str, code: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        entry = self._open.pop(rid, None)
        if entry is not None:
            entry.span.set_attribute("error.type", code)
            entry.span.set_status(Status(StatusCode.ERROR, code))
            entry.span.end(self._clock())


def open_tracing(observe: Observe, model: str) -> Tracing | None:
    """What a launch file asks for; spans go out in batches, on a thread, and are dropped when nobody takes them."""
    if observe.otlp_endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "radjax"}))
    exporter = OTLPSpanExporter(endpoint=observe.otlp_endpoint, timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider.get_tracer("radjax"), model, close=provider.shutdown)


def _latencies(answer: Finished) -> dict[str, float]:
    """By the engine's clock, in seconds."""
    times = answer.times
    return {
        "gen_ai.latency.time_in_queue": _seconds(times.arrived_ns, times.admitted_ns or times.finished_ns),
        "gen_ai.latency.time_in_model_prefill": _seconds(times.admitted_ns, times.first_token_ns),
        "gen_ai.latency.time_in_model_decode": _seconds(times.first_token_ns, times.finished_ns),
        "gen_ai.latency.time_in_model_inference": _seconds(times.admitted_ns, times.finished_ns),
    }


def _seconds(start_ns: int, end_ns: int) -> float:
    """Between two moments; 0 where one of them never came."""
    return max(0, end_ns - start_ns) / 1e9 if start_ns and end_ns else 0.0
