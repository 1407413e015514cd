"""Names that dashboards, routers and alert rules for other servers read: type, then labels. Counters without suffix.

From the servers' own metric lists (SGLang ``srt/observability/metrics_collector.py`` at 016d8605, vLLM
``vllm/v1/metrics/loggers.py``); what belongs to features that do not exist here is left out.
"""

_ENGINE = ("model_name", "engine_type", "tp_rank", "pp_rank", "moe_ep_rank")
_FRONT = ("model_name", "engine_type")
_STREAM = (*_FRONT, "is_streaming")
_VLLM = ("model_name", "engine")

SGLANG = {
    "sglang:num_running_reqs": ("gauge", *_ENGINE),
    "sglang:num_queue_reqs": ("gauge", *_ENGINE),
    "sglang:num_used_tokens": ("gauge", *_ENGINE),
    "sglang:token_usage": ("gauge", *_ENGINE),
    "sglang:full_token_usage": ("gauge", *_ENGINE),
    "sglang:kv_used_tokens": ("gauge", *_ENGINE),
    "sglang:kv_available_tokens": ("gauge", *_ENGINE),
    "sglang:kv_evictable_tokens": ("gauge", *_ENGINE),
    "sglang:cache_hit_rate": ("gauge", *_ENGINE),
    "sglang:gen_throughput": ("gauge", *_ENGINE),
    "sglang:new_token_ratio": ("gauge", *_ENGINE),
    "sglang:max_total_num_tokens": ("gauge", *_ENGINE),
    "sglang:page_size": ("gauge", *_ENGINE),
    "sglang:num_pages": ("gauge", *_ENGINE),
    "sglang:context_len": ("gauge", *_ENGINE),
    "sglang:cache_config_info": ("gauge", *_ENGINE, "page_size", "num_pages"),
    "sglang:num_retracted_requests": ("counter", *_ENGINE),
    "sglang:num_retracted_input_tokens": ("counter", *_ENGINE),
    "sglang:num_retracted_output_tokens": ("counter", *_ENGINE),
    "sglang:evicted_tokens": ("counter", *_ENGINE),
    "sglang:realtime_tokens": ("counter", *_ENGINE, "mode"),
    "sglang:cached_tokens": ("counter", *_FRONT, "cache_source"),
    "sglang:prefill_effective_tokens": ("counter", *_ENGINE, "mode"),
    "sglang:prompt_tokens": ("counter", *_STREAM),
    "sglang:generation_tokens": ("counter", *_STREAM),
    "sglang:num_requests": ("counter", *_STREAM),
    "sglang:num_aborted_requests": ("counter", *_FRONT),
    "sglang:time_to_first_token_seconds": ("histogram", *_STREAM),
    "sglang:e2e_request_latency_seconds": ("histogram", *_STREAM),
    "sglang:inter_token_latency_seconds": ("histogram", *_FRONT),
    "sglang:request_time_per_output_token_seconds": ("histogram", *_FRONT),
    "sglang:queue_time_seconds": ("histogram", *_FRONT),
    "sglang:per_stage_req_latency_seconds": ("histogram", *_FRONT, "stage"),
    "sglang:prompt_tokens_histogram": ("histogram", *_FRONT),
    "sglang:uncached_prompt_tokens_histogram": ("histogram", *_FRONT),
    "sglang:generation_tokens_histogram": ("histogram", *_FRONT),
    "sglang:http_requests": ("counter", "endpoint", "method"),
    "sglang:http_requests_active": ("gauge", "endpoint", "method"),
    "sglang:http_responses": ("counter", "endpoint", "status_code", "method"),
}

VLLM = {
    "vllm:num_requests_running": ("gauge", *_VLLM),
    "vllm:num_requests_waiting": ("gauge", *_VLLM),
    "vllm:num_requests_waiting_by_reason": ("gauge", *_VLLM, "reason"),
    "vllm:kv_cache_usage_perc": ("gauge", *_VLLM),
    "vllm:cache_config_info": ("gauge", "engine", "block_size", "num_gpu_blocks"),
    "vllm:prefix_cache_queries": ("counter", *_VLLM),
    "vllm:prefix_cache_hits": ("counter", *_VLLM),
    "vllm:external_prefix_cache_queries": ("counter", *_VLLM),
    "vllm:external_prefix_cache_hits": ("counter", *_VLLM),
    "vllm:gpu_cache_usage_perc": ("gauge", *_VLLM),
    "vllm:gpu_prefix_cache_queries": ("counter", *_VLLM),
    "vllm:gpu_prefix_cache_hits": ("counter", *_VLLM),
    "vllm:time_per_output_token_seconds": ("histogram", *_VLLM),
    "vllm:num_preemptions": ("counter", *_VLLM),
    "vllm:prompt_tokens": ("counter", *_VLLM),
    "vllm:prompt_tokens_by_source": ("counter", *_VLLM, "source"),
    "vllm:prompt_tokens_cached": ("counter", *_VLLM),
    "vllm:generation_tokens": ("counter", *_VLLM),
    "vllm:request_success": ("counter", *_VLLM, "finished_reason"),
    "vllm:admission_rejections": ("counter", *_VLLM, "reason"),
    "vllm:time_to_first_token_seconds": ("histogram", *_VLLM),
    "vllm:inter_token_latency_seconds": ("histogram", *_VLLM),
    "vllm:request_time_per_output_token_seconds": ("histogram", *_VLLM),
    "vllm:e2e_request_latency_seconds": ("histogram", *_VLLM),
    "vllm:request_queue_time_seconds": ("histogram", *_VLLM),
    "vllm:request_inference_time_seconds": ("histogram", *_VLLM),
    "vllm:request_prefill_time_seconds": ("histogram", *_VLLM),
    "vllm:request_decode_time_seconds": ("histogram", *_VLLM),
    "vllm:request_prompt_tokens": ("histogram", *_VLLM),
    "vllm:request_generation_tokens": ("histogram", *_VLLM),
    "vllm:request_max_num_generation_tokens": ("histogram", *_VLLM),
    "vllm:request_params_n": ("histogram", *_VLLM),
    "vllm:request_params_max_tokens": ("histogram", *_VLLM),
    "vllm:request_num_preemptions": ("histogram", *_VLLM),
    "vllm:iteration_tokens_total": ("histogram", *_VLLM),
    "http_requests": ("counter", "handler", "method", "status"),
    "http_request_duration_seconds": ("histogram", "handler", "method"),
}

GATEWAY = {
    "vllm": ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"),
    "sglang": ("sglang:num_queue_reqs", "sglang:num_running_reqs", "sglang:token_usage"),
}
"""Queue, running, use of the KV cache: what the Gateway API inference extension asks of a model server."""
CACHE_SIZES = {
    "vllm": ("vllm:cache_config_info", "block_size", "num_gpu_blocks"),
    "sglang": ("sglang:cache_config_info", "page_size", "num_pages"),
}
"""From labels of which its prefix scorer takes the sizes: ``docs/proposals/003-model-server-protocol`` at 84436a96."""

DASHBOARDS = {
    # examples/monitoring/grafana/dashboards/json/sglang-dashboard.json at bac2cc67
    "sglang": (
        *("sglang:e2e_request_latency_seconds", "sglang:time_to_first_token_seconds", "sglang:num_running_reqs"),
        *("sglang:gen_throughput", "sglang:cache_hit_rate", "sglang:num_queue_reqs"),
    ),
    # examples/observability/dashboards/grafana/vllm_overview.json at 0b9faa41, prometheus_grafana/grafana.json there at
    # 4b5c627c and before that at e88892c9, less what is of multimodal models, and of swapping, which vLLM gave up
    "vllm": (
        *("vllm:request_success", "vllm:prompt_tokens", "vllm:generation_tokens", "http_requests"),
        *("vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds", "vllm:e2e_request_latency_seconds"),
        *("vllm:request_time_per_output_token_seconds", "vllm:time_per_output_token_seconds"),
        *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:num_requests_waiting_by_reason"),
        *("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "vllm:num_preemptions"),
        *("vllm:prefix_cache_hits", "vllm:prefix_cache_queries", "vllm:iteration_tokens_total"),
        *("vllm:external_prefix_cache_hits", "vllm:external_prefix_cache_queries", "vllm:prompt_tokens_by_source"),
        *("vllm:request_queue_time_seconds", "vllm:request_prefill_time_seconds", "vllm:request_decode_time_seconds"),
        *("vllm:request_prompt_tokens", "vllm:request_generation_tokens", "vllm:request_max_num_generation_tokens"),
        "http_request_duration_seconds",
    ),
}
"""What their own dashboards draw."""

ASKED = (
    'http_requests_total{handler="/generate",method="POST",status="2xx"}',
    'vllm:num_requests_waiting_by_reason{reason="capacity"}',
    'vllm:num_requests_waiting_by_reason{reason="deferred"}',
    'vllm:prompt_tokens_by_source_total{source="local_compute"}',
    'vllm:prompt_tokens_by_source_total{source="local_cache_hit"}',
    'vllm:prompt_tokens_by_source_total{source="external_kv_transfer"}',
    *(f'vllm:request_success_total{{finished_reason="{reason}"}}' for reason in ("stop", "length", "abort", "error")),
    *(
        f'vllm:time_to_first_token_seconds_bucket{{le="{bound}"}}'
        for bound in ("0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0", "10.0")
    ),
    *(
        f'vllm:request_time_per_output_token_seconds_bucket{{le="{bound}"}}'
        for bound in ("0.025", "0.05", "0.075", "0.1", "0.15", "0.2", "0.3", "0.5")
    ),
)
"""Single series that vLLM's overview picks out by label values, of its service level selectors too."""
