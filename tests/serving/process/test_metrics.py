"""What Prometheus is told."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import Metrics
from tests.serving.process.figures import request_stats, step_stats

NAMES = {
    "radjax_num_running_reqs",
    "radjax_num_queue_reqs",
    "radjax_token_usage",
    "radjax_num_used_tokens",
    "radjax_gen_throughput",
    "radjax_cache_hit_rate",
    "radjax_prompt_tokens_total",
    "radjax_generation_tokens_total",
    "radjax_cached_tokens_total",
    "radjax_num_requests_total",
    "radjax_num_aborted_requests_total",
    "radjax_num_retracted_requests_total",
    "radjax_num_preempted_requests_total",
    "radjax_num_displaced_requests_total",
    "radjax_num_waiting_timeouts_total",
    "radjax_num_running_timeouts_total",
    "radjax_evicted_tokens_total",
    "radjax_time_to_first_token_seconds_bucket",
    "radjax_inter_token_latency_seconds_bucket",
    "radjax_e2e_request_latency_seconds_bucket",
    "radjax_queue_time_seconds_bucket",
    "radjax_late_compiles_total",
    "radjax_step_tokens_total",
    "radjax_padded_tokens_total",
}


def samples(metrics: Metrics) -> dict[str, float]:
    """Value by name, summed over labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            assert sample.labels["model_name"] == "m"
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def test_names_are_api_and_are_there_before_the_first_request() -> None:
    # document: M-2
    assert set(samples(Metrics({"model_name": "m"}))) >= NAMES


def test_gauges_follow_the_newest_step_of_every_replica() -> None:
    # document: M-7
    metrics = Metrics({"model_name": "m"})
    one = step_stats(num_running=2, num_queued=1, tokens_used=30, tokens_total=100, prompt_tokens=60, cached_tokens=15)
    two = step_stats(replica=1, num_running=3, tokens_used=20, tokens_total=100, prompt_tokens=40, gen_throughput=9.5)
    metrics.step({0: one, 1: two})
    found = samples(metrics)
    assert found["radjax_num_running_reqs"] == 5
    assert found["radjax_num_queue_reqs"] == 1
    assert found["radjax_num_used_tokens"] == 50
    assert found["radjax_token_usage"] == 0.25
    assert found["radjax_cache_hit_rate"] == 0.15
    assert found["radjax_gen_throughput"] == 9.5


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_a_counter_never_goes_down_and_ends_at_the_largest_total(totals: list[int]) -> None:
    metrics = Metrics({"model_name": "m"})
    before = 0.0
    for total in totals:
        metrics.step({0: step_stats(retractions=total, evicted_tokens=2 * total, late_compiles=total)})
        found = samples(metrics)
        assert found["radjax_num_retracted_requests_total"] >= before
        before = found["radjax_num_retracted_requests_total"]
    assert before == max(totals)
    assert found["radjax_evicted_tokens_total"] == 2 * max(totals)


@given(st.lists(st.sampled_from(["stop", "length", "abort", "rejected", "error"]), max_size=30))
def test_requests_are_counted_by_outcome_and_rejected_ones_bring_no_tokens(outcomes: list[str]) -> None:
    metrics = Metrics({"model_name": "m"})
    for outcome in outcomes:
        metrics.request(request_stats(outcome))
    found = samples(metrics)
    taken = sum(outcome != "rejected" for outcome in outcomes)
    assert found["radjax_num_requests_total"] == len(outcomes)
    assert found["radjax_num_aborted_requests_total"] == outcomes.count("abort") + outcomes.count("error")
    assert found["radjax_prompt_tokens_total"] == 3 * taken
    assert found["radjax_generation_tokens_total"] == 2 * taken
    assert found["radjax_cached_tokens_total"] == taken
    assert found["radjax_e2e_request_latency_seconds_count"] == taken
    assert found["radjax_inter_token_latency_seconds_count"] == taken
