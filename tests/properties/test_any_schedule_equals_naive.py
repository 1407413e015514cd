"""Whatever is planned, at any depth, every request gets the tokens that it would get alone."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings

from scheduler.assembly import assemble
from scheduler.commands import (
    Abort,
    Delta,
    Finished,
    FinishReason,
    Generate,
    Reason,
    Rejected,
    Shutdown,
    Stop,
    TokenLogprobs,
)
from scheduler.loop import run
from tests.fakes import KVEchoRunner, ScriptedPort, echo_logprob, echo_token
from tests.strategies import EOS, Workload, workloads

# document: O-1, O-2, O-5, O-6, O-7, O-18, O-21


@dataclass
class Heard:
    """What a frontend got for one request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finished: Finished | None = None
    deltas: int = 0


def naive(request: Generate, vocab: int) -> list[int]:
    """The output of a request that has the machine to itself."""
    params, sequence, output = request.params, list(request.prompt), list[int]()
    stops = {*params.stop_token_ids} | (set() if params.ignore_eos else {EOS})
    while len(output) < params.max_new_tokens:
        banned = (EOS, *params.stop_token_ids) if len(output) < params.min_new_tokens else ()
        token = echo_token(sequence, vocab, banned)
        sequence.append(token)
        output.append(token)
        if token in stops:
            break
    return output


def collect(port: ScriptedPort) -> dict[str, Heard]:
    """Answers by request; a second terminal answer, or anything after it, fails."""
    heard: dict[str, Heard] = {}
    for _, answer in port.answers:
        if not isinstance(answer, Delta | Finished | Rejected):
            continue
        entry = heard.setdefault(answer.rid, Heard())
        assert entry.finished is None, "something came after the terminal answer"
        assert not isinstance(answer, Rejected), answer
        delta = answer.delta if isinstance(answer, Finished) else answer
        entry.tokens += delta.tokens
        entry.logprobs += delta.logprobs or []
        entry.prompt_logprobs += delta.prompt_logprobs or []
        if isinstance(answer, Finished):
            entry.finished = answer
        else:
            entry.deltas += 1
    return heard


def play(workload: Workload, keep_steps: bool = False) -> tuple[ScriptedPort, KVEchoRunner]:
    """Run a workload to its end and shut the engine down."""
    script = {turn: list(commands) for turn, commands in workload.script.items()}
    script[10_000] = [(0, Shutdown())]
    port, runner = ScriptedPort(script), KVEchoRunner(workload.shapes, keep_steps=keep_steps)
    run(assemble(port, runner, workload.settings, ()), workload.settings.depth)
    return port, runner


def check_request(request: Generate, entry: Heard, vocab: int, interrupted: bool) -> None:
    expected, finished = naive(request, vocab), entry.finished
    assert finished is not None, "no terminal answer"
    assert finished.output_tokens == len(entry.tokens) or finished.reason is FinishReason.STOP and interrupted
    assert entry.tokens == expected[: len(entry.tokens)]
    if not interrupted:
        assert entry.tokens == expected
        last_stops = bool(expected) and expected[-1] in {EOS, *request.params.stop_token_ids}
        if finished.reason is FinishReason.LENGTH:
            assert len(expected) == request.params.max_new_tokens
        else:
            assert finished.reason is FinishReason.STOP
            assert last_stops
            assert finished.matched == expected[-1]
        check_scores(request, entry)
    if not request.stream:
        assert entry.deltas == 0
    check_times(finished)
    if request.params.logprobs is not None:
        for index, (token, got) in enumerate(zip(entry.tokens, entry.logprobs, strict=True)):
            sequence = [*request.prompt, *expected[:index]]
            assert got.token == token
            assert got.logprob == echo_logprob(sequence, token)
            assert len(got.top_ids) == request.params.logprobs


def check_times(finished: Finished) -> None:
    """Every moment has one reason, the parts add up, and the pieces of a prompt follow one another."""
    times, phases = finished.times, finished.times.phases
    assert sum(times.waited_ns.values()) == times.finished_ns - times.arrived_ns
    if times.omitted:
        return
    ends = [times.arrived_ns, *(phase.end_ns for phase in phases)]
    assert [phase.start_ns for phase in phases] == ends[:-1]
    assert ends[-1] == times.finished_ns
    totals: Counter[str] = Counter()
    for phase in phases:
        totals[phase.reason.value] += phase.end_ns - phase.start_ns
    assert totals == times.waited_ns
    if not finished.retractions:
        pieces = [phase for phase in phases if phase.reason is Reason.PREFILL and phase.last]
        edges = [finished.cached_tokens, *(piece.last for piece in pieces)]
        assert [piece.first for piece in pieces] == edges[:-1]
        assert edges[-1] <= finished.prompt_tokens
        decoding = [index for index, phase in enumerate(phases) if phase.reason is Reason.DECODE]
        assert not pieces or not decoding or phases.index(pieces[-1]) < decoding[0]


def check_scores(request: Generate, entry: Heard) -> None:
    params = request.params
    if params.prompt_logprobs is None:
        assert not entry.prompt_logprobs
        return
    positions = range(params.prompt_logprobs_from, len(request.prompt))
    assert [got.token for got in entry.prompt_logprobs] == [request.prompt[p] for p in positions]
    for position, got in zip(positions, entry.prompt_logprobs, strict=True):
        prefix = request.prompt[:position]
        assert got.logprob == (echo_logprob(prefix, request.prompt[position]) if prefix else None)


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads())
def test_any_schedule_at_any_depth_gives_every_request_the_tokens_it_would_get_alone(workload: Workload) -> None:
    port, _ = play(workload)
    heard = collect(port)
    commands = [command for turn in workload.script.values() for _, command in turn]
    disturbed = Counter(command.rid for command in commands if isinstance(command, Abort | Stop))
    assert set(heard) == {request.rid for request in workload.requests}
    for request in workload.requests:
        check_request(request, heard[request.rid], workload.shapes.vocab_size, request.rid in disturbed)
