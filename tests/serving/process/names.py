"""Names that dashboards, routers and alert rules for other servers read: type, then labels. Counters without suffix.

From the servers' own metric lists; what belongs to features that do not exist here is left out.
"""

_ENGINE = ("model_name", "engine_type", "tp_rank", "pp_rank")
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
    "vllm:kv_cache_usage_perc": ("gauge", *_VLLM),
    "vllm:cache_config_info": ("gauge", "engine", "block_size", "num_gpu_blocks"),
    "vllm:prefix_cache_queries": ("counter", *_VLLM),
    "vllm:prefix_cache_hits": ("counter", *_VLLM),
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
