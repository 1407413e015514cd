"""Wire values for tests, with only the fields that matter given."""

import msgspec

from scheduler.commands import Ready, RequestStats, StepStats


def step_stats(**given: int | float | str | dict[str, int]) -> StepStats:
    """All zero, or what it is unless given."""
    zeros: dict[str, int | float] = {field.name: 0 for field in msgspec.structs.fields(StepStats) if field.required}
    return msgspec.convert(zeros | given, StepStats)


def request_stats(outcome: str = "stop", **given: int | float | str | list[float]) -> RequestStats:
    """A short request."""
    plain = {
        "frontend": 0,
        "endpoint": "/generate",
        "outcome": outcome,
        "prompt_tokens": 3,
        "output_tokens": 2,
        "cached_tokens": 1,
        "queue_s": 0.001,
        "ttft_s": 0.01,
        "e2e_s": 0.02,
        "inter_token_s": [0.01],
    }
    return msgspec.convert(plain | given, RequestStats)


def ready() -> Ready:
    """A small engine."""
    return Ready(
        status="ready",
        max_total_num_tokens=4096,
        max_req_input_len=1000,
        context_length=1024,
        vocab_size=256,
        eos_token_ids=[0],
        folder="/",
        served_name="m",
        max_running_requests=8,
        page_size=16,
        num_pages=256,
        architecture="echo",
        banner=[],
    )
