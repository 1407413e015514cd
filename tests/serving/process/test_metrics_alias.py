"""Other servers' names: the pinned lists of what their dashboards and routers read."""

from pathlib import Path
from typing import Literal

import pytest
from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families

from scheduler.commands import TierStats
from serving.collector_wire import HttpStats
from serving.metrics import Metrics
from tests.serving.process.figures import ready, request_stats, step_stats
from tests.serving.process.names import ASKED, CACHE_SIZES, DASHBOARDS, GATEWAY, SGLANG, VLLM
from tests.serving.process.service import serving
from tests.serving.process.test_metrics import LABELS

LISTS = {"sglang": SGLANG, "vllm": VLLM}
TIERS = TierStats(
    **dict.fromkeys(("host_used", "host_total", "saved", "loaded", "host_evicted", "stored", "fetched"), 0),
    cached_host=1,
    cached_storage=0,
    num_loading=1,
)


def exposition(alias: Literal["none", "sglang", "vllm"]) -> str:
    """After a step, a request and an exchange."""
    metrics = Metrics(LABELS, alias)
    for report in (
        ready(),
        step_stats(
            num_running=3, num_queued=2, tokens_used=32, tokens_total=128, family="decode", size=8, step_tokens=3
        ),
        structs.replace(
            step_stats(num_running=3, num_queued=2, tokens_used=32, tokens_total=128, prompt_tokens=9, cached_tokens=4),
            tiers=TIERS,
        ),
        request_stats(streaming=True, output_tokens=3),
        request_stats("rejected", refusal="queue_full"),
        HttpStats("/generate", "POST"),
        HttpStats("/generate", "POST", 200, 0.1),
        HttpStats("/health", "GET", 200, 0.1),
    ):
        metrics.take(report)
    return metrics.render().decode()


def read(text: str) -> dict[str, tuple[str, set[str], list[float]]]:
    """Name without the counter's suffix → type, label names that every sample has, values."""
    return {
        family.name: (
            family.type,
            set.intersection(*(set(sample.labels) for sample in family.samples)) - {"le"},
            [sample.value for sample in family.samples],
        )
        for family in text_string_to_metric_families(text)
        if family.samples
    }


@pytest.mark.parametrize("server", ["sglang", "vllm"])
def test_every_name_of_the_list_is_there_with_its_type_and_labels(server: Literal["sglang", "vllm"]) -> None:
    found = read(exposition(server))
    wanted = {name: (kind, set(labels)) for name, (kind, *labels) in LISTS[server].items()}
    assert {
        name: (kind, wanted[name][1] & labels) for name, (kind, labels, _) in found.items() if name in wanted
    } == wanted


def test_without_an_alias_all_names_are_ours() -> None:
    assert all(name.startswith("radjax_") for name in read(exposition("none")))


@pytest.mark.parametrize("server", ["sglang", "vllm"])
def test_what_the_gateway_reads_has_its_meaning(server: Literal["sglang", "vllm"]) -> None:
    found = read(exposition(server))
    queued, running, usage = GATEWAY[server]
    assert found[queued] == ("gauge", found[queued][1], [2.0])
    assert found[running] == ("gauge", found[running][1], [3.0])
    assert found[usage] == ("gauge", found[usage][1], [0.25])


@pytest.mark.parametrize("server", ["sglang", "vllm"])
def test_the_gateway_finds_the_sizes_of_the_cache_in_labels(server: Literal["sglang", "vllm"]) -> None:
    name, block_size, num_blocks = CACHE_SIZES[server]
    [info] = [family for family in text_string_to_metric_families(exposition(server)) if family.name == name]
    [sample] = info.samples
    assert (sample.labels[block_size], sample.labels[num_blocks]) == ("16", "256")


@pytest.mark.parametrize("server", ["sglang", "vllm"])
def test_every_panel_of_their_dashboards_finds_its_figures(server: Literal["sglang", "vllm"]) -> None:
    assert set(DASHBOARDS[server]) <= set(read(exposition(server)))


def test_the_series_that_a_dashboard_picks_by_label_are_there() -> None:
    series = [
        (sample.name, sample.labels)
        for family in text_string_to_metric_families(exposition("vllm"))
        for sample in family.samples
    ]
    for asked in ASKED:
        name, _, rest = asked.partition("{")
        labels = dict(part.split("=") for part in rest.removesuffix("}").split(","))
        wanted = {key: value.strip('"') for key, value in labels.items()}
        assert any(name == found and wanted.items() <= given.items() for found, given in series), asked


def test_what_waits_by_reason_adds_up_and_probes_are_no_requests() -> None:
    text = exposition("vllm")
    assert read(text)["vllm:num_requests_waiting_by_reason"][2] == [1.0, 1.0]
    assert 'handler="/health"' not in text
    assert 'radjax_http_responses_total{endpoint="/health"' in text


def test_the_other_names_say_what_ours_say() -> None:
    ours, sglang, vllm = (read(exposition(alias)) for alias in ("none", "sglang", "vllm"))
    for theirs, own in (
        (sglang["sglang:generation_tokens"], "radjax_generation_tokens"),
        (sglang["sglang:num_requests"], "radjax_num_requests"),
        (vllm["vllm:generation_tokens"], "radjax_generation_tokens"),
        (vllm["vllm:prefix_cache_hits"], "radjax_prefix_cache_hits"),
        (vllm["vllm:e2e_request_latency_seconds"], "radjax_e2e_request_latency_seconds"),
    ):
        assert sum(theirs[2]) == sum(ours[own][2])
    assert sum(vllm["vllm:request_success"][2]) == 1  # a refusal is no success
    assert sorted(vllm["vllm:prompt_tokens_by_source"][2]) == [1, 3, 5]  # a token came from host memory
    assert (vllm["vllm:external_prefix_cache_queries"][2], vllm["vllm:external_prefix_cache_hits"][2]) == ([6], [1])
    assert sglang["sglang:cached_tokens"][2] == [3.0, 1.0, 0.0]


def test_a_service_speaks_the_others_names_and_logs_requests_as_the_launch_file_says(tmp_path: Path) -> None:
    # document: M-2
    settings = ("observe.metrics_alias=vllm", "observe.log_requests=2", "model.name=echo-model")
    with serving(tmp_path, *settings) as service:
        service.wait_for("/readyz", 200)
        assert service.generate([65, 66], 3).status_code == 200
        text = service.client.get("/metrics").text
        assert set(GATEWAY["vllm"]) < set(read(text))
        assert 'vllm:num_requests_running{engine="0",model_name="echo-model"}' in text
        assert 'http_requests_total{handler="/generate",method="POST",status="2xx"' in text.replace(
            'engine="0",', ""
        ).replace('model_name="echo-model",', "")
    assert "request received {" in service.said
    assert "request finished {" in service.said
    assert '"prompt":' not in service.said


def test_a_service_without_metrics_serves_all_the_same(tmp_path: Path) -> None:
    # document: M-2
    with serving(tmp_path, "observe.metrics=false") as service:
        service.wait_for("/readyz", 200)
        assert service.generate([65, 66], 3).status_code == 200
        assert service.status("/metrics") == 404
        assert service.status("/get_load") == 200
        assert "request received" not in service.said
