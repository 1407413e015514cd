"""The simulator: on a recording it is the server; on the fake clock it loses nothing and keeps time."""

import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from model.interface import Family, Shapes, StepInput
from scheduler.assembly import Settings, assemble
from scheduler.commands import Abort, Finished, Generate, Rejected, SamplingParams, Shutdown, StepStats
from scheduler.figures import Figures
from scheduler.loop import run
from scheduler.recording import Recorder
from scheduler.replay import arrivals, open_recording, play
from scheduler.simulate import ROUND_TRIP_NS, TURN_NS, ClosedLoop, Source, Timeline, simulate
from scheduler.step_times import CopyTimes, StepClock
from scheduler.trace import Arrival, Synthetic, TraceError
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import Watcher
from tests.scheduler.tables import times
from tests.strategies import Workload, workloads

SHAPES = Shapes((2, 8, 32), (64, 256), 64, 32, 8, 1, 16, 64, 5000)
SETTINGS = Settings(context_length=1024, num_pages=1500, max_rows=32, depth=1, max_inflight=1, eos_ids=(2,))
STEP_S = 0.02


def measured(source: Source, seconds: float = STEP_S, setting: Settings = SETTINGS) -> Figures:
    return simulate(source, SHAPES, setting, StepClock(times(SHAPES, seconds), SHAPES.page_size)).figures("model", 1.0)


def ask(rid: str, prompt_len: int, max_tokens: int, **params: object) -> Generate:
    settled = SamplingParams(max_new_tokens=max_tokens, seed=0, **params)  # pyright: ignore[reportArgumentType]
    return Generate(rid=rid, prompt=list(range(5, 5 + prompt_len)), params=settled)


def record(workload: Workload, path: Path) -> tuple[Watcher, ScriptedPort]:
    """Run a workload on the echo engine as a server would be run with ``--record``."""
    script = {turn: list(commands) for turn, commands in workload.script.items()}
    script[10_000] = [(0, Shutdown())]
    recorder = Recorder(path.open("wb"), workload.shapes, workload.settings, 2**30, b"key")
    watcher, port = Watcher(), ScriptedPort(script)
    engine = assemble(port, KVEchoRunner(workload.shapes), workload.settings, (recorder, watcher))
    run(engine, workload.settings.depth)
    recorder.close()
    return watcher, port


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads())
def test_a_recording_planned_at_its_recorded_turns_has_the_servers_plans_steps_and_hit_rate(workload: Workload) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        watcher, port = record(workload, path)
        told: list[StepInput] = []
        replayed = play(open_recording(path), told.append)
    served = [event for event in watcher.events if isinstance(event, StepStats)][-1]
    figures = replayed.meter.figures("recorded", 1.0)
    kinds = {
        family: sum(n for name, n in figures.steps_by_program.items() if name.startswith(family)) for family in Family
    }
    assert replayed.compared > 0
    assert figures.steps == served.step == len(told)
    assert (kinds["decode"], kinds["mixed"], kinds["score"]) == (
        served.steps_decode,
        served.steps_mixed,
        served.steps_score,
    )
    assert figures.hit_rate == pytest.approx(served.cached_tokens / max(served.prompt_tokens, 1), abs=1e-6)
    assert (figures.retractions, figures.evicted_tokens) == (served.retractions, served.evicted_tokens)
    computed = served.padded_tokens + served.scheduled_tokens
    assert figures.padding_share == pytest.approx(served.padded_tokens / max(computed, 1), abs=1e-6)
    assert (figures.requests, figures.unanswered) == (len(workload.requests), 0)
    ended = [answer for _, answer in port.answers if isinstance(answer, Finished)]
    assert figures.output_tokens == sum(answer.output_tokens for answer in ended)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads(), data=st.data())
def test_on_the_fake_clock_every_request_is_answered_once_and_says_what_it_should(
    workload: Workload, data: st.DataObject
) -> None:
    script: list[Arrival] = []
    for request in workload.requests:
        at = data.draw(st.integers(0, 10**8))
        says = data.draw(st.one_of(st.none(), st.integers(1, 20)))
        script.append(Arrival(at, request, says))
        if data.draw(st.integers(0, 5)) == 0:
            script.append(Arrival(at + data.draw(st.integers(0, 10**8)), Abort(rid=request.rid)))
    script.sort(key=lambda arrival: arrival.at_ns)
    steps = StepClock(times(workload.shapes, data.draw(st.sampled_from([1e-4, 1e-2]))), 1)
    meter = simulate(Timeline(script), workload.shapes, workload.settings, steps)
    figures = meter.figures("model", 1.0)
    assert (figures.requests, figures.unanswered) == (len(workload.requests), 0)
    assert figures.finished + figures.aborted + figures.rejected == len(workload.requests)
    if not figures.aborted and not figures.rejected:
        room = workload.settings.context_length
        wanted = [
            min(one.output_tokens or 99, one.command.params.max_new_tokens, room - len(one.command.prompt))
            for one in script
            if isinstance(one.command, Generate)
        ]
        assert figures.output_tokens == sum(wanted)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), rate=st.sampled_from([None, 5.0, 500.0]))
def test_the_same_trace_gives_the_same_figures(seed: int, rate: float | None) -> None:
    workload = Synthetic(
        requests=30, rate=rate, prompt_len=(10, 200), output_len=(1, 20), prefixes=3, prefix_len=64, seed=seed
    )

    def once() -> Figures:
        requests = workload.arrivals(SHAPES.vocab_size)
        return measured(ClosedLoop(requests, 8) if rate is None else Timeline(requests))

    assert once() == once()


def test_steps_twice_as_fast_double_the_throughput_of_a_saturated_trace() -> None:
    workload = Synthetic(requests=150, prompt_len=(20, 120), output_len=(10, 40))
    slow, fast = (
        measured(ClosedLoop(workload.arrivals(SHAPES.vocab_size), 64), seconds) for seconds in (STEP_S, STEP_S / 2)
    )
    assert fast.steps == slow.steps
    assert fast.out_tok_s / slow.out_tok_s == pytest.approx(2, rel=0.03)
    assert slow.queue_max > 0


def test_a_client_asks_again_after_a_round_trip() -> None:
    one_client = Synthetic(requests=3, prompt_len=(20, 20), output_len=(1, 1))
    figures = measured(ClosedLoop(one_client.arrivals(SHAPES.vocab_size), 1))
    assert figures.seconds == pytest.approx(3 * STEP_S + 2 * ROUND_TRIP_NS / 1e9, abs=9 * TURN_NS / 1e9)


def test_requests_far_apart_are_not_slowed_by_each_other() -> None:
    workload = Synthetic(requests=20, rate=0.01, prompt_len=(50, 50), output_len=(5, 5))
    figures = measured(Timeline(workload.arrivals(SHAPES.vocab_size)))
    assert figures.queue_max == 0
    assert figures.ttft_ms.p99 == pytest.approx(figures.ttft_ms.p50, abs=1)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_lone_requests_latencies_are_the_sum_of_its_steps(depth: int) -> None:
    setting = msgspec.structs.replace(SETTINGS, depth=depth, max_inflight=depth)
    figures = measured(Timeline([Arrival(10**9, ask("a", 40, 6))]), STEP_S, setting)
    step_ms, turn_ms = STEP_S * 1e3, TURN_NS / 1e6
    assert figures.steps_by_program == {"decode/lean/2": 5, "mixed/lean/64": 1}
    assert step_ms <= figures.ttft_ms.p50 <= step_ms + 3 * turn_ms
    assert 6 * step_ms <= figures.e2e_ms.p50 <= 6 * step_ms + 8 * turn_ms
    assert figures.out_tok_s == pytest.approx(6 / figures.seconds)
    assert figures.padding_share == pytest.approx((24 + 5) / (64 + 10), abs=1e-6)


def test_a_request_enters_no_earlier_than_it_arrives() -> None:
    at_ns, step_ms = 10**9 + 10**7, STEP_S * 1e3  # in the middle of a step of the first one's
    alone = measured(Timeline([Arrival(0, ask("a", 40, 100))]))
    both = measured(Timeline([Arrival(0, ask("a", 40, 100)), Arrival(at_ns, ask("b", 60, 1))]))
    assert both.ttft_ms.p99 > alone.ttft_ms.p99
    assert 1.5 * step_ms <= both.ttft_ms.p99 <= 3 * step_ms


def test_a_queue_is_as_long_on_average_as_its_requests_wait() -> None:
    one_row = msgspec.structs.replace(SETTINGS, max_rows=1)
    figures = measured(Timeline([Arrival(0, ask("a", 40, 10)), Arrival(0, ask("b", 30, 10))]), STEP_S, one_row)
    assert figures.queue_max == 1
    assert figures.queue_mean == pytest.approx(0.5, abs=0.06)


def test_a_token_that_ends_answers_on_the_server_ends_none_here() -> None:
    every = tuple(range(8))
    setting = msgspec.structs.replace(SETTINGS, eos_ids=every)
    assert measured(Timeline([Arrival(0, ask("a", 9, 7))]), STEP_S, setting).output_tokens == 7


def test_a_longer_context_costs_what_the_table_says() -> None:
    # a step of 20 ms at 100 tokens and of 40 ms at 1,100
    longer = [msgspec.structs.replace(time, context_tokens=1100, seconds=2 * STEP_S) for time in times(SHAPES, STEP_S)]
    steps = StepClock((*times(SHAPES, STEP_S), *longer), SHAPES.page_size)
    first = simulate(Timeline([Arrival(0, ask("a", 60, 1))]), SHAPES, SETTINGS, steps).figures("model", 1.0)
    second = simulate(Timeline([Arrival(0, ask("a", 250, 1))]), SHAPES, SETTINGS, steps).figures("model", 1.0)
    assert first.ttft_ms.p50 == pytest.approx(18 + 20 * 60 / 1000, abs=0.5)
    assert second.ttft_ms.p50 == pytest.approx(18 + 20 * 250 / 1000, abs=0.5)


def test_shared_prefixes_are_found_in_the_cache() -> None:
    requests = [Arrival(number * 10**9, ask(str(number), 161, 2)) for number in range(10)]
    figures = measured(Timeline(requests))
    assert figures.hit_rate == pytest.approx(9 * 160 / (10 * 161), abs=1e-6)


def test_a_step_that_wants_log_probabilities_or_penalties_runs_too() -> None:
    wanted = [ask("a", 9, 3, logprobs=2), ask("b", 9, 3, repetition_penalty=1.2), ask("c", 70, 0, prompt_logprobs=1)]
    figures = measured(Timeline([Arrival(0, command) for command in wanted]))
    assert figures.finished == 3
    assert any(name.startswith("mixed/full") for name in figures.steps_by_program)
    assert any(name.startswith("score/lean") for name in figures.steps_by_program)


def test_an_id_in_use_is_refused_and_counted_once() -> None:
    figures = measured(Timeline([Arrival(0, ask("a", 9, 3)), Arrival(5, ask("a", 9, 3)), Arrival(9, ask("a", 9, 3))]))
    assert (figures.requests, figures.finished, figures.rejected) == (3, 1, 2)


def test_a_request_that_ends_before_its_limit_holds_the_limits_reservation_and_says_less() -> None:
    figures = measured(Timeline([Arrival(0, ask("a", 9, 50), 7), Arrival(0, ask("b", 9, 4), 7)]))
    assert figures.output_tokens == 7 + 4


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads())
def test_a_recordings_requests_can_be_asked_on_the_fake_clock(workload: Workload) -> None:
    plain = all(isinstance(c, Generate) for commands in workload.script.values() for _, c in commands)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        _, port = record(workload, path)
        recording = open_recording(path)
        steps = StepClock(times(workload.shapes, 1e-3), workload.shapes.page_size)
        meter = simulate(Timeline(arrivals(recording)), recording.header.shapes, recording.header.settings, steps)
    figures = meter.figures("model", 1.0)
    refused = sum(isinstance(answer, Rejected) for _, answer in port.answers)
    assert (figures.requests, figures.rejected) == (len(workload.requests), refused)
    if plain:
        said = sum(answer.output_tokens for _, answer in port.answers if isinstance(answer, Finished))
        assert figures.output_tokens == said


def with_host_tier(times_of_copies: CopyTimes | None, host_pages: int = 200) -> Figures:
    """Four prefixes take turns on a pool that holds one of them."""
    requests = [Arrival(number * 10**9, turn(number)) for number in range(20)]
    setting = msgspec.structs.replace(SETTINGS, num_pages=14, host_pages=host_pages, check="every_step")
    steps = StepClock(times(SHAPES, STEP_S), SHAPES.page_size)
    return simulate(Timeline(requests), SHAPES, setting, steps, times_of_copies).figures("model", 1.0)


def turn(number: int) -> Generate:
    params = SamplingParams(max_new_tokens=2, seed=0)
    return Generate(rid=str(number), prompt=[5 + number % 4] * 160 + [number], params=params)


def test_what_the_device_drops_comes_back_from_the_host_tier() -> None:
    assert with_host_tier(None, host_pages=0).hit_rate == 0
    found = with_host_tier(CopyTimes(save_s=1e-6, load_s=1e-6))
    assert found.hit_rate == pytest.approx(16 * 160 / (20 * 161), abs=1e-6)


def test_a_load_puts_the_step_off_that_reads_it_and_a_save_is_heard_of_when_it_is_done() -> None:
    quick, slow_load, slow_save = (
        with_host_tier(CopyTimes(save_s=save, load_s=load)) for save, load in ((1e-6, 1e-6), (1e-6, 0.01), (0.3, 1e-6))
    )
    assert quick.hit_rate == slow_load.hit_rate
    assert slow_load.ttft_ms.p50 - quick.ttft_ms.p50 == pytest.approx(10 * 10, abs=1)  # 160 tokens in pages of 16
    assert slow_save.hit_rate == quick.hit_rate
    assert slow_save.ttft_ms.p50 > quick.ttft_ms.p50 + 1000  # the next request's step waits behind the copies


def test_a_host_tier_whose_copies_were_not_measured_is_refused_by_the_key_to_measure_with() -> None:
    with pytest.raises(ConfigError, match="cache.host=true"):
        with_host_tier(None)


def test_a_program_without_a_time_is_named() -> None:
    steps = StepClock((time for time in times(SHAPES, 1.0) if time.size != 8), SHAPES.page_size)
    with pytest.raises(ConfigError, match="no time of the program decode/lean/8"):
        steps.check(SHAPES)
    requests = [Arrival(0, ask(str(number), 9, 3)) for number in range(5)]
    with pytest.raises(ConfigError, match="no time of the program decode/lean/8"):
        simulate(Timeline(requests), SHAPES, SETTINGS, steps)


def test_a_vocabulary_of_one_token_is_refused() -> None:
    with pytest.raises(TraceError, match="at least two tokens"):
        simulate(Timeline([]), replace(SHAPES, vocab_size=1), SETTINGS, StepClock(times(SHAPES, 1.0), SHAPES.page_size))
