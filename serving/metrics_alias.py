"""The names under which other servers give the same figures, for dashboards and routers that know only those.

Types and meaning are theirs; bounds of histograms are ours, with those among them that their dashboards ask for.
Counters stand without ``_total``, as they are declared. Names that they have given up are there for as long as
dashboards of older releases read them.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from serving.metrics_family import Family, Labels, Sample, merged

AliasName = Literal["none", "sglang", "vllm"]
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Alias(NamedTuple):
    """One name of another server.

    ``labels`` are those beside the ones that all its names have, each from one of ours; where ``values`` is given, only
    samples whose first such label has one of these values are taken, under the value given for it. Samples of the
    endpoints in ``without`` are left out.
    """

    name: str
    stem: str
    labels: Mapping[str, str] = NOTHING
    values: Mapping[str, str] = NOTHING
    without: frozenset[str] = frozenset()


def sglang() -> tuple[Alias, ...]:
    """SGLang's names: with few exceptions our stems are theirs."""
    streaming = {"is_streaming": "is_streaming"}
    exchange = {"endpoint": "endpoint", "method": "method"}
    cached = {"device": "device", "host": "host", "storage": "storage_file"}
    modes = {"computed": "input", **{source: f"{source}_hit" for source in cached}}
    return (
        *(Alias(f"sglang:{stem}", stem) for stem in _SGLANG_PLAIN),
        *(Alias(f"sglang:{stem}", stem, streaming) for stem in _SGLANG_STREAMING),
        Alias("sglang:cached_tokens", "prompt_tokens_by_source", {"cache_source": "source"}, cached),
        Alias("sglang:prefill_effective_tokens", "prompt_tokens_by_source", {"mode": "source"}, modes),
        Alias("sglang:realtime_tokens", "realtime_tokens", {"mode": "mode"}),
        Alias("sglang:per_stage_req_latency_seconds", "per_stage_req_latency_seconds", {"stage": "stage"}),
        Alias("sglang:cache_config_info", "cache_config_info", {"page_size": "page_size", "num_pages": "num_pages"}),
        Alias("sglang:http_requests", "http_requests", exchange),
        Alias("sglang:http_requests_active", "http_requests_active", exchange),
        Alias("sglang:http_responses", "http_responses", {**exchange, "status_code": "status_code"}),
    )


def vllm() -> tuple[Alias, ...]:
    """The names of vLLM, and those of the HTTP instrumentation that it uses."""
    external = "external_kv_transfer"
    sources = {"computed": "local_compute", "device": "local_cache_hit", "host": external, "storage": external}
    waiting = {"capacity": "capacity", "storage": "deferred"}
    ends = {outcome: outcome for outcome in ("stop", "length", "abort", "error")}
    return (
        *(Alias(f"vllm:{name}", stem) for name, stem in _VLLM_PLAIN.items()),
        Alias("vllm:num_requests_waiting_by_reason", "num_queue_reqs_by_cause", {"reason": "cause"}, waiting),
        Alias("vllm:prompt_tokens_by_source", "prompt_tokens_by_source", {"source": "source"}, sources),
        Alias("vllm:request_success", "num_requests", {"finished_reason": "outcome"}, ends),
        Alias("vllm:admission_rejections", "num_rejected_requests", {"reason": "reason"}),
        Alias(
            "vllm:cache_config_info", "cache_config_info", {"block_size": "page_size", "num_gpu_blocks": "num_pages"}
        ),
        Alias(
            "http_requests",
            "http_responses",
            {"status": "status_code", "handler": "endpoint", "method": "method"},
            {str(status): f"{status // 100}xx" for status in range(100, 600)},
            _VLLM_PROBES,
        ),
        Alias(
            "http_request_duration_seconds",
            "http_request_duration_seconds",
            {"handler": "endpoint", "method": "method"},
            without=_VLLM_PROBES,
        ),
    )


def aliased(families: Iterable[Family], server: AliasName) -> Iterator[tuple[str, Family]]:
    """Full name and content of every figure that ``server`` has too."""
    if server == "none":
        return
    by_stem = {family.stem: family for family in families}
    for alias in sglang() if server == "sglang" else vllm():
        family = by_stem.get(alias.stem)
        if family is not None:
            base = _sglang_base if server == "sglang" else _vllm_base
            some = [
                Sample({**base(sample.labels), **_extra(alias, sample.labels)}, sample.value)
                for sample in _taken(alias, family)
            ]
            yield alias.name, Family(alias.name, family.kind, family.text, merged(some))


def _taken(alias: Alias, family: Family) -> Iterator[Sample]:
    """The samples that an alias is made of."""
    first = next(iter(alias.labels.values()), "")
    return (
        sample
        for sample in family.samples
        if (not alias.values or sample.labels.get(first) in alias.values)
        and sample.labels.get("endpoint") not in alias.without
    )


def _extra(alias: Alias, labels: Labels) -> Labels:
    return {theirs: alias.values.get(labels[ours], labels[ours]) for theirs, ours in alias.labels.items()}


def _sglang_base(labels: Labels) -> Labels:
    names = ("model_name", "engine_type", "tp_rank", "pp_rank", "dp_rank")
    ranks = {"moe_ep_rank": "0"} if "tp_rank" in labels else {}
    return {**{name: labels[name] for name in names if name in labels}, **ranks}


def _vllm_base(labels: Labels) -> Labels:
    return {"model_name": labels["model_name"], "engine": labels.get("dp_rank", "0")}


_SGLANG_PLAIN: Final = (
    *("num_running_reqs", "num_queue_reqs", "num_grammar_queue_reqs", "num_used_tokens"),
    *("token_usage", "full_token_usage", "swa_token_usage", "hicache_host_used_tokens", "hicache_host_total_tokens"),
    *("load_back_tokens", "backuped_tokens", "prefetched_tokens"),
    *("kv_used_tokens", "kv_available_tokens", "kv_evictable_tokens", "cache_hit_rate", "gen_throughput"),
    *("max_total_num_tokens", "new_token_ratio", "spec_accept_length", "page_size", "num_pages", "context_len"),
    *("num_decode_prealloc_queue_reqs", "num_decode_transfer_queue_reqs"),
    *("num_retracted_requests", "num_retracted_input_tokens", "num_retracted_output_tokens", "evicted_tokens"),
    *("queue_time_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds"),
    *("prompt_tokens_histogram", "uncached_prompt_tokens_histogram", "generation_tokens_histogram"),
    "num_aborted_requests",
)
_SGLANG_STREAMING: Final = (
    *("prompt_tokens", "generation_tokens", "num_requests"),
    *("time_to_first_token_seconds", "e2e_request_latency_seconds"),
)
_VLLM_PROBES: Final = frozenset({"/metrics", "/health", "/load", "/ping", "/version", "/server_info"})
"""Endpoints that its HTTP figures leave out."""
_VLLM_PLAIN: Final[Mapping[str, str]] = MappingProxyType(
    {
        "num_requests_running": "num_running_reqs",
        "num_requests_waiting": "num_queue_reqs",
        "kv_cache_usage_perc": "token_usage",
        "prefix_cache_queries": "prefix_cache_queries",
        "prefix_cache_hits": "prefix_cache_hits",
        "external_prefix_cache_queries": "tier_queries",
        "external_prefix_cache_hits": "tier_hits",
        "num_preemptions": "num_retracted_requests",
        "prompt_tokens": "prompt_tokens",
        "prompt_tokens_cached": "cached_tokens",
        "generation_tokens": "generation_tokens",
        "time_to_first_token_seconds": "time_to_first_token_seconds",
        "inter_token_latency_seconds": "inter_token_latency_seconds",
        "request_time_per_output_token_seconds": "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds": "e2e_request_latency_seconds",
        "request_queue_time_seconds": "queue_time_seconds",
        "request_inference_time_seconds": "request_inference_time_seconds",
        "request_prefill_time_seconds": "request_prefill_time_seconds",
        "request_decode_time_seconds": "request_decode_time_seconds",
        "request_prompt_tokens": "prompt_tokens_histogram",
        "request_generation_tokens": "generation_tokens_histogram",
        "request_max_num_generation_tokens": "generation_tokens_histogram",
        "request_params_n": "request_params_n",
        "request_params_max_tokens": "request_params_max_tokens",
        "request_num_preemptions": "request_num_retractions",
        "iteration_tokens_total": "iteration_tokens",
        "gpu_cache_usage_perc": "token_usage",
        "gpu_prefix_cache_queries": "prefix_cache_queries",
        "gpu_prefix_cache_hits": "prefix_cache_hits",
        "time_per_output_token_seconds": "inter_token_latency_seconds",
    }
)
