"""What Prometheus is told."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from scheduler.commands import Compiled, StepTimes, TierStats
from serving.collector_wire import HttpStats
from serving.launcher import make_metrics
from serving.metrics import Metrics
from serving.metrics_engine import SILENT_S, EngineFigures
from serving.metrics_family import MAX_SERIES, OTHER, Histogram, Source
from tests.serving.fakes import make_config
from tests.serving.process.figures import ready, request_stats, step_stats

LABELS = {"model_name": "m", "engine_type": "unified"}
NAMES = {
    "radjax_serving",
    "radjax_num_running_reqs",
    "radjax_num_queue_reqs",
    "radjax_token_usage",
    "radjax_num_used_tokens",
    "radjax_num_cached_tokens",
    "radjax_kv_used_tokens",
    "radjax_kv_available_tokens",
    "radjax_kv_evictable_tokens",
    "radjax_max_total_num_tokens",
    "radjax_gen_throughput",
    "radjax_input_throughput",
    "radjax_cache_hit_rate",
    "radjax_new_token_ratio",
    "radjax_max_running_requests",
    "radjax_prefix_cache_queries_total",
    "radjax_prefix_cache_hits_total",
    "radjax_prompt_tokens_total",
    "radjax_generation_tokens_total",
    "radjax_cached_tokens_total",
    "radjax_realtime_tokens_total",
    "radjax_prompt_tokens_by_source_total",
    "radjax_leaks_total",
    "radjax_full_token_usage",
    "radjax_num_requests_total",
    "radjax_num_aborted_requests_total",
    "radjax_num_retracted_requests_total",
    "radjax_num_retracted_input_tokens_total",
    "radjax_num_retracted_output_tokens_total",
    "radjax_num_preempted_requests_total",
    "radjax_num_displaced_requests_total",
    "radjax_num_waiting_timeouts_total",
    "radjax_num_running_timeouts_total",
    "radjax_evicted_tokens_total",
    "radjax_time_to_first_token_seconds_bucket",
    "radjax_inter_token_latency_seconds_bucket",
    "radjax_request_time_per_output_token_seconds_bucket",
    "radjax_e2e_request_latency_seconds_bucket",
    "radjax_queue_time_seconds_bucket",
    "radjax_per_stage_req_latency_seconds_bucket",
    "radjax_prompt_tokens_histogram_bucket",
    "radjax_generation_tokens_histogram_bucket",
    "radjax_iteration_tokens_bucket",
    "radjax_step_host_seconds_bucket",
    "radjax_host_phase_seconds_total",
    "radjax_compile_seconds_bucket",
    "radjax_late_compiles_total",
    "radjax_step_tokens_total",
    "radjax_padded_tokens_total",
}
LATER = {
    "num_grammar_queue": "radjax_num_grammar_queue_reqs",
    "spec_accept_length": "radjax_spec_accept_length",
    "num_prealloc_queue": "radjax_num_decode_prealloc_queue_reqs",
    "num_transfer_queue": "radjax_num_decode_transfer_queue_reqs",
}


def make(*reports: msgspec.Struct, replicas: int = 1) -> Metrics:
    metrics = Metrics(LABELS, replicas=replicas)
    for report in (ready(), *reports):
        metrics.take(report)  # pyright: ignore[reportArgumentType]
    return metrics


def series(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """By name: label values in the order of their names, without those that all have, → value."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            assert {name: sample.labels[name] for name in LABELS} == LABELS
            rest = tuple(v for name, v in sample.labels.items() if name not in (*LABELS, "tp_rank", "pp_rank"))
            assert rest not in found.setdefault(sample.name, {}), "a series comes once"
            found[sample.name][rest] = sample.value
    return found


def samples(metrics: Metrics) -> dict[str, float]:
    """Value by name, summed over labels."""
    return {name: sum(values.values()) for name, values in series(metrics).items()}


def stems(source: Source) -> dict[str, float]:
    """Value of each number by its stem, summed over labels."""
    found: dict[str, float] = {}
    for family in source.families():
        for sample in family.samples:
            if not isinstance(sample.value, Histogram):
                found[family.stem] = found.get(family.stem, 0) + sample.value
    return found


def test_names_are_api_and_are_there_before_the_first_request() -> None:
    # document: M-7, O-31
    assert set(samples(make())) >= NAMES


@pytest.mark.parametrize("replicas", [1, 2])
def test_engine_figures_carry_the_documents_labels_and_a_dp_rank_only_where_there_are_several(replicas: int) -> None:
    # document: M-2, M-14
    for family in text_string_to_metric_families(make(step_stats(), replicas=replicas).render().decode()):
        if family.name in ("radjax_num_running_reqs", "radjax_evicted_tokens", "radjax_token_usage"):
            [sample] = family.samples
            wanted = {**LABELS, "tp_rank": "0", "pp_rank": "0"}
            assert sample.labels == ({**wanted, "dp_rank": "0"} if replicas > 1 else wanted)


def test_metrics_are_made_only_when_they_are_wanted() -> None:
    # document: M-2
    config = make_config()
    off = msgspec.structs.replace(config, observe=msgspec.structs.replace(config.observe, metrics=False))
    assert make_metrics(config, "n") is not None
    assert make_metrics(off, "n") is None


def test_what_the_engine_has_not_is_absent_until_it_has_it() -> None:
    # document: M-7, M-8, M-20
    assert not set(samples(make(step_stats()))) & set(LATER.values())
    found = samples(make(step_stats(**dict.fromkeys(LATER, 3))))
    assert [found[name] for name in LATER.values()] == [3, 3, 3, 3]


def test_gauges_follow_the_newest_step_of_every_replica() -> None:
    # document: M-1, M-6, M-7
    one = step_stats(num_running=2, num_queued=1, tokens_used=30, tokens_total=100, prompt_tokens=60, cached_tokens=15)
    two = step_stats(replica=1, num_running=3, tokens_used=21, tokens_total=64, gen_throughput=9.5, tokens_free=40)
    found = series(make(step_stats(num_running=9), one, two, replicas=2))
    assert found["radjax_num_running_reqs"] == {("0",): 2, ("1",): 3}
    assert found["radjax_num_queue_reqs"] == {("0",): 1, ("1",): 0}
    assert found["radjax_token_usage"] == {("0",): 0.3, ("1",): 0.33}
    assert found["radjax_cache_hit_rate"] == {("0",): 0.25, ("1",): 0}
    assert found["radjax_gen_throughput"] == {("0",): 0, ("1",): 9.5}
    assert found["radjax_kv_evictable_tokens"] == {("0",): 70, ("1",): 3}


def test_the_usage_of_a_hybrid_pool_is_the_larger_share() -> None:
    # document: M-6
    found = samples(make(step_stats(tokens_used=10, tokens_total=100, swa_token_usage=0.4)))
    assert [found[f"radjax_{name}"] for name in ("token_usage", "full_token_usage", "swa_token_usage")] == [
        0.4,
        0.1,
        0.4,
    ]
    assert "radjax_swa_token_usage" not in samples(make(step_stats()))


def test_prompt_tokens_by_source_sum_to_all_of_them_with_and_without_tiers_below() -> None:
    fields = msgspec.structs.fields(TierStats)
    tiers = msgspec.convert({field.name: i for i, field in enumerate(fields, 1)}, TierStats)
    with_tiers = make(msgspec.structs.replace(step_stats(prompt_tokens=90, cached_tokens=40), tiers=tiers))
    sources = series(with_tiers)["radjax_prompt_tokens_by_source_total"]
    assert sources == {("computed",): 50, ("device",): 33, ("host",): 3, ("storage",): 4}
    assert samples(with_tiers)["radjax_hicache_host_total_tokens"] == tiers.host_total
    without = make(step_stats(prompt_tokens=90, cached_tokens=40))
    assert series(without)["radjax_prompt_tokens_by_source_total"] == {("computed",): 50, ("device",): 40}
    assert not [
        name for name in samples(without) if "host_" in name and "step_host" not in name and "phase" not in name
    ]


def test_leaks_are_counted_by_pool_and_a_pool_that_is_not_there_is_absent() -> None:
    # document: M-11, M-13
    zeros = {("slots",): 0, ("state",): 0, ("tokens",): 0}
    assert series(make())["radjax_leaks_total"] == zeros
    found = step_stats(leaks={"tokens": 2, "slots": 0, "state": 1, "host": 3})
    assert series(make(found))["radjax_leaks_total"] == {**zeros, ("tokens",): 2, ("state",): 1, ("host",): 3}


def test_an_engine_that_hangs_has_no_throughput() -> None:
    # document: P-5
    now_s = [0.0]
    figures = EngineFigures(LABELS, ranked=False, clock=lambda: now_s[0])
    figures.step(step_stats(gen_throughput=50.0, input_throughput=9.0, num_running=2))
    now_s[0] = SILENT_S
    assert stems(figures)["gen_throughput"] == 50
    now_s[0] += 1
    assert (stems(figures)["gen_throughput"], stems(figures)["input_throughput"]) == (0, 0)
    assert stems(figures)["num_running_reqs"] == 2


def test_a_paused_engine_shows_it_and_one_that_goes_on_no_more() -> None:
    # document: P-5
    assert samples(make())["radjax_paused"] == 0
    metrics = make(step_stats(paused=True))
    assert samples(metrics)["radjax_paused"] == 1
    metrics.take(step_stats(paused=False))
    assert samples(metrics)["radjax_paused"] == 0


def test_the_usage_is_never_above_one() -> None:
    # document: M-6
    assert samples(make(step_stats(tokens_used=70, tokens_total=64)))["radjax_token_usage"] == 1


def test_an_engine_that_is_gone_leaves_no_gauge_and_all_counters() -> None:
    # document: P-5
    metrics = make(step_stats(num_running=2, retractions=4))
    before = series(metrics)
    metrics.over()
    after = series(metrics)
    assert not [name for name in after if name.startswith("radjax_num_running_reqs")]
    assert after["radjax_num_retracted_requests_total"] == before["radjax_num_retracted_requests_total"]
    text = metrics.render().decode().splitlines()
    gauges = {line.split()[2] for line in text if line.startswith("# TYPE") and line.endswith("gauge")}
    assert gauges == {"radjax_serving", "radjax_http_requests_active"}
    assert after["radjax_serving"] == {(): 0}


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_a_counter_never_goes_down_and_ends_at_the_largest_total(totals: list[int]) -> None:
    figures = EngineFigures(LABELS, ranked=False)
    before = 0.0
    for total in totals:
        figures.step(step_stats(retractions=total, evicted_tokens=2 * total, late_compiles=total))
        found = stems(figures)
        assert found["num_retracted_requests"] >= before
        before = found["num_retracted_requests"]
    assert before == max(totals)
    assert found["evicted_tokens"] == 2 * max(totals)


steps = st.lists(st.tuples(st.sampled_from(["decode", "mixed"]), st.sampled_from([8, 32, 64]), st.integers(1, 8)))


@settings(max_examples=15)  # each renders everything
@given(steps)
def test_padding_and_time_are_counted_for_every_bucket(taken: list[tuple[str, int, int]]) -> None:
    # document: O-31
    metrics = make()
    for family, size, tokens in taken:
        metrics.take(step_stats(family=family, size=size, step_tokens=tokens))
        metrics.take(
            StepTimes(
                replica=0,
                family=family,  # pyright: ignore[reportArgumentType]
                size=size,
                step_s=0.25,
                receive_s=1,
                plan_s=2,
                launch_s=3,
                commit_s=4,
                emit_s=5,
            )
        )
    found = series(metrics)
    for key in {(str(size), family) for family, size, _ in taken}:
        mine = [tokens for family, size, tokens in taken if (str(size), family) == key]
        assert found["radjax_bucket_tokens_total"][key] == sum(mine)
        assert found["radjax_bucket_padded_tokens_total"][key] == int(key[0]) * len(mine) - sum(mine)
        assert found["radjax_step_duration_seconds_count"][key] == len(mine)
        assert found["radjax_step_duration_seconds_sum"][key] == 0.25 * len(mine)
    assert found["radjax_step_host_seconds_sum"] == {(): 15 * len(taken)}
    phases = {(phase,): n * len(taken) for n, phase in enumerate(("receive", "plan", "launch", "commit", "emit"), 1)}
    assert found["radjax_host_phase_seconds_total"] == phases
    assert found["radjax_iteration_tokens_count"] == {(): len(taken)}


def test_programs_are_counted_by_where_they_came_from() -> None:
    compiled = Compiled(family="decode", variant="lean", size=8, seconds=3, from_cache=False)
    found = series(
        make(compiled, msgspec.structs.replace(compiled, size=32), msgspec.structs.replace(compiled, from_cache=True))
    )
    assert found["radjax_compiled_programs_total"] == {
        ("decode", "compiler", "lean"): 2,
        ("decode", "cache", "lean"): 1,
    }
    assert found["radjax_compile_seconds_sum"] == {("compiler",): 6, ("cache",): 3}


@settings(max_examples=15)  # each renders everything
@given(st.lists(st.sampled_from(["stop", "length", "abort", "rejected", "error"]), max_size=30), st.booleans())
def test_requests_are_counted_by_outcome_and_rejected_ones_bring_no_tokens(outcomes: list[str], stream: bool) -> None:
    metrics = make()
    for outcome in outcomes:
        metrics.take(request_stats(outcome, streaming=stream, refusal="queue_full" if outcome == "rejected" else ""))
    found, by_label = samples(metrics), series(metrics)
    taken = sum(outcome != "rejected" for outcome in outcomes)
    assert found["radjax_num_requests_total"] == len(outcomes)
    assert by_label["radjax_num_requests_total"][str(stream).lower(), "stop"] == outcomes.count("stop")
    assert found.get("radjax_num_rejected_requests_total", 0) == outcomes.count("rejected")
    assert found["radjax_num_aborted_requests_total"] == outcomes.count("abort") + outcomes.count("error")
    assert found["radjax_prompt_tokens_total"] == 3 * taken
    assert found["radjax_generation_tokens_total"] == 2 * taken
    assert found["radjax_cached_tokens_total"] == taken
    assert found["radjax_e2e_request_latency_seconds_count"] == taken
    assert found["radjax_inter_token_latency_seconds_count"] == taken
    assert by_label["radjax_per_stage_req_latency_seconds_count"] == {
        (stage,): taken for stage in ("queue", "prefill", "decode")
    }


def test_the_services_own_probe_is_no_request() -> None:
    assert samples(make(request_stats(endpoint="/health_generate")))["radjax_num_requests_total"] == 0


def test_http_exchanges_are_counted_by_route_and_those_open_are_shown() -> None:
    begun = HttpStats("/generate", "POST")
    found = series(
        make(
            begun,
            begun,
            HttpStats("/generate", "POST", 200, 0.5),
            HttpStats("/x", "GET"),
            HttpStats("/x", "GET", 404, 0.1),
        )
    )
    assert found["radjax_http_requests_total"] == {("/generate", "POST"): 2, ("/x", "GET"): 1}
    assert found["radjax_http_requests_active"] == {("/generate", "POST"): 1, ("/x", "GET"): 0}
    assert found["radjax_http_responses_total"] == {("/generate", "POST", "200"): 1, ("/x", "GET", "404"): 1}
    assert found["radjax_http_request_duration_seconds_sum"] == {("/generate", "POST"): 0.5, ("/x", "GET"): 0.1}


def test_label_values_are_bounded_whatever_is_reported() -> None:
    metrics = make(*(HttpStats(f"/{i}", "GET", 200) for i in range(MAX_SERIES + 50)))
    found = series(metrics)["radjax_http_responses_total"]
    assert len(found) == MAX_SERIES + 1
    assert found[OTHER, OTHER, OTHER] == 50


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0, 10.0]) | st.floats(0, 12, allow_nan=False)))
def test_a_histogram_counts_every_value_in_the_bucket_that_its_bound_closes(values: list[float]) -> None:
    histogram = Histogram((1, 2, 5, 10))
    for value in values:
        histogram.observe(value)
    edges = (0, 1, 2, 5, 10, float("inf"))
    for number, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        assert histogram.counts[number] == sum(low < value <= high or value == low == 0 for value in values)
    assert histogram.total == pytest.approx(sum(values))
