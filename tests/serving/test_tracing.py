"""A span for every request."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from configs.errors import ConfigError
from configs.schema import Observe
from scheduler.commands import (
    AbortCause,
    Delta,
    Finished,
    FinishReason,
    Generate,
    Rejected,
    RequestTimes,
    SamplingParams,
)
from serving.engine_wire import EngineGone
from serving.listener import ListenedLink
from serving.tracing import NEEDED, SPAN, Tracing, check_tracing, open_tracing
from tests.serving.fakes import FakeEngine, make_ready
from tests.serving.service import serve

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
ASKED = Observe(otlp_endpoint="http://127.0.0.1:9/v1/traces")


class Traced:
    """A tracing whose spans end in a list, on the test's clock."""

    def __init__(self) -> None:
        self.now_ns = 10**18
        self._exporter = InMemorySpanExporter()
        self._provider = TracerProvider()
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(self._provider.get_tracer("test"), "tiny", lambda: self.now_ns)

    @property
    def spans(self) -> list[ReadableSpan]:
        """Of requests."""
        return [span for span in self._exporter.get_finished_spans() if span.kind is SpanKind.SERVER]

    @property
    def stages(self) -> list[ReadableSpan]:
        """The spans below those."""
        return [span for span in self._exporter.get_finished_spans() if span.kind is not SpanKind.SERVER]


@pytest.fixture
def traced() -> Traced:
    return Traced()


def asked(rid: str = "r", trace: str | None = None) -> Generate:
    params = SamplingParams(max_new_tokens=9, temperature=0.5, top_p=0.9)
    return Generate(rid=rid, group="call", prompt=[1, 2, 3], params=params, trace=trace)


def ended(rid: str = "r", reason: FinishReason = FinishReason.LENGTH, tokens: int = 3) -> Finished:
    s = 10**9
    return Finished(
        rid=rid,
        delta=Delta(rid=rid, tokens=[5] * tokens),
        reason=reason,
        cause=AbortCause.RUNNING_TIMEOUT,
        prompt_tokens=3,
        output_tokens=tokens,
        cached_tokens=2,
        times=RequestTimes(
            arrived_ns=1 * s, admitted_ns=3 * s, first_token_ns=7 * s, finished_ns=15 * s, waited_ns={"decode": 14 * s}
        ),
    )


def test_a_span_carries_what_the_conventions_name(traced: Traced) -> None:
    traced.tracing.sent(asked(trace=PARENT))
    traced.now_ns += 2 * 10**9
    traced.tracing.said(Delta(rid="r", tokens=[]))  # of scores: no token is there yet
    traced.now_ns += 10**9
    traced.tracing.said(Delta(rid="r", tokens=[5]))
    traced.now_ns += 4 * 10**9
    traced.tracing.finished(ended())
    [span] = traced.spans
    assert (span.name, span.kind) == (SPAN, SpanKind.SERVER)
    assert span.attributes == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "radjax",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.id": "call",
        "gen_ai.response.id": "r",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.latency.e2e": 7.0,
        "gen_ai.latency.time_to_first_token": 3.0,
        "gen_ai.latency.time_in_queue": 2.0,
        "gen_ai.latency.time_in_model_prefill": 4.0,
        "gen_ai.latency.time_in_model_decode": 8.0,
        "gen_ai.latency.time_in_model_inference": 12.0,
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time == 7 * 10**9
    assert span.parent is not None
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    assert {stage.parent and stage.parent.span_id for stage in traced.stages} == {span.context.span_id}
    expected = [("queue", 0, 2), ("prefill", 2, 6), ("decode", 6, 14)]
    assert [(stage.name, *since(stage, span)) for stage in traced.stages] == expected


def since(stage: ReadableSpan, whole: ReadableSpan) -> list[float]:
    """Its start and its end in seconds after the start of the whole."""
    assert whole.start_time is not None
    return [(moment - whole.start_time) / 1e9 for moment in (stage.start_time, stage.end_time) if moment is not None]


@pytest.mark.parametrize(
    ("never", "expected"),
    [("first_token_ns", [("queue", 0, 2), ("prefill", 2, 14)]), ("admitted_ns", [("queue", 0, 14)])],
)
def test_a_request_has_only_the_stages_that_it_came_to(
    traced: Traced, never: str, expected: list[tuple[str, float, float]]
) -> None:
    traced.tracing.sent(asked())
    answer = ended(reason=FinishReason.ABORT)
    missing = {"first_token_ns": 0, never: 0}
    traced.tracing.finished(structs.replace(answer, times=structs.replace(answer.times, **missing)))
    [span] = traced.spans
    assert [(stage.name, *since(stage, span)) for stage in traced.stages] == expected


@given(st.lists(st.sampled_from(["finished", "rejected", "lost", "probe"]), max_size=12))
def test_every_request_but_a_probe_has_one_span_however_it_ends(ends: list[str]) -> None:
    traced = Traced()
    for number, end in enumerate(ends):
        rid = f"health-{number}" if end == "probe" else f"r{number}"
        traced.tracing.sent(asked(rid))
        traced.tracing.sent(asked(rid))  # to another engine, once more
    for number, end in enumerate(ends):
        for _ in range(2):
            if end == "finished":
                traced.tracing.finished(ended(f"r{number}"))
            elif end == "rejected":
                traced.tracing.rejected(Rejected(rid=f"r{number}", status=503, code="queue_full", message=""))
            elif end == "lost":
                traced.tracing.lost({f"r{number}"}, "killed")
            else:
                traced.tracing.finished(ended(f"health-{number}"))
    found = [span.attributes["gen_ai.response.id"] for span in traced.spans if span.attributes]
    assert found == [f"r{number}" for number, end in enumerate(ends) if end != "probe"]
    failed = [span for span in traced.spans if span.status.status_code is StatusCode.ERROR]
    assert len(failed) == ends.count("rejected") + ends.count("lost")
    assert {span.attributes["error.type"] for span in failed if span.attributes} <= {"queue_full", "engine_dead"}


def test_an_aborted_request_says_who_ended_it(traced: Traced) -> None:
    traced.tracing.sent(asked())
    traced.tracing.finished(ended(reason=FinishReason.ABORT))
    [span] = traced.spans
    assert span.attributes is not None
    assert span.attributes["error.type"] == "aborted: running_timeout"


@pytest.mark.parametrize(("given_header", "honoured"), [(PARENT, True), ("00-nonsense", False), (None, False)])
def test_a_call_over_http_becomes_a_span_under_its_clients_own(
    folder: Path, traced: Traced, given_header: str | None, honoured: bool
) -> None:
    engine = FakeEngine(lambda request: [65, 66, 67])
    engine.say(make_ready(folder))
    headers = {} if given_header is None else {"traceparent": given_header}
    with serve(folder, lambda request: [], link=ListenedLink(engine, traced.tracing)) as service:
        body = {"model": "tiny", "prompt": "Hello", "max_tokens": 3, "n": 2}
        assert httpx2.post(f"{service.url}/v1/completions", json=body, headers=headers).status_code == 200
    spans = traced.spans
    assert len(spans) == 2
    assert {span.attributes["gen_ai.usage.output_tokens"] for span in spans if span.attributes} == {3}
    assert all((f"{span.context.trace_id:032x}" == TRACE) == honoured for span in spans if span.context)


def test_requests_open_on_a_link_whose_engine_dies_are_lost_and_those_of_others_are_not(traced: Traced) -> None:
    async def go() -> None:
        engines = [FakeEngine(lambda request: [65], pace_s=60) for _ in range(2)]
        dying, other = (ListenedLink(engine, traced.tracing) for engine in engines)
        await dying.send(asked("a"))
        await other.send(asked("b"))
        engines[0].die()
        with pytest.raises(EngineGone):
            await dying.receive()
        engines[1].die()

    asyncio.run(go())
    [span] = traced.spans
    assert span.attributes is not None
    assert (span.attributes["gen_ai.response.id"], span.attributes["error.type"]) == ("a", "engine_dead")


def test_what_is_not_installed_is_said_at_the_start_and_only_where_it_is_asked_for() -> None:
    check_tracing(ASKED)
    check_tracing(Observe(), lambda name: None)
    with pytest.raises(ConfigError, match=r"observe.otlp_endpoint: bad value \(got 'localhost:4318'\); allowed: a URL"):
        check_tracing(Observe(otlp_endpoint="localhost:4318"))
    with pytest.raises(ConfigError, match=r"observe.otlp_endpoint: opentelemetry.sdk is not installed.*\.\[otel\]"):
        check_tracing(ASKED, lambda name: None)

    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    with pytest.raises(ConfigError, match=NEEDED[0]):
        check_tracing(ASKED, absent)


class Receiver(BaseHTTPRequestHandler):
    """Takes what is posted, and keeps it with its server."""

    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        self.server.posted.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Collector(HTTPServer):
    """An OpenTelemetry collector's HTTP end."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.posted: list[bytes] = []


def test_spans_reach_the_collector_that_the_launch_file_names_and_without_one_there_is_no_tracing() -> None:
    assert open_tracing(Observe(), "tiny") is None
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        tracing = open_tracing(Observe(otlp_endpoint=url), "tiny")
        assert tracing is not None
        tracing.sent(asked())
        tracing.finished(ended())
        tracing.close()
        collector.shutdown()
        thread.join()
    [body] = collector.posted
    assert SPAN.encode() in body
    assert b"gen_ai.latency.time_in_queue" in body
