"""The record of one scheduled batch: a JSON line (document: V-1)."""

from typing import Annotated

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0)]
Duration = Annotated[float, Meta(ge=0)]
"""Milliseconds."""


class StepRecord(Struct, frozen=True, kw_only=True):
    """A batch. Without the fields from ``mode`` on, and in their order, these are the fields of vLLM's own files.

    What a file may lack is None then.
    """

    batch_id: Count | None = None
    timestamp: Duration | None = None
    """Unix seconds."""
    schedule_duration_ms: Duration
    """Taking commands in, planning, and laying the batch out."""
    model_run_duration_ms: Duration | None = None
    """From the launch to the output on the host; batches in flight overlap."""
    total_step_duration_ms: Duration | None = None
    """Of the time in which there was work, what passed between the end of the batch before and the end of this one."""
    num_prefill_reqs: Count
    num_decode_reqs: Count
    total_scheduled_tokens: Count
    prefill_chunk_sizes: list[Count] = []
    decode_chunk_sizes: list[Count] = []
    avg_prefill_chunk_size: Duration = 0.0
    max_prefill_chunk_size: Count = 0
    min_prefill_chunk_size: Count = 0
    avg_decode_chunk_size: Duration = 0.0
    num_waiting_reqs: Count | None = None
    num_running_reqs: Count | None = None
    kv_cache_usage: Annotated[float, Meta(ge=0, le=1)] | None = None
    mode: str | None = None
    """``extend``, ``decode``, ``mixed`` or ``score``."""
    bucket: Count | None = None
    """Rows of a decode program, tokens of any other."""
    padding: Count | None = None
    """How much of the bucket is padding."""
    cached_tokens: Count | None = None
    """Prompt tokens that requests admitted since the batch before found in the cache."""
    retractions: Count | None = None
    receive_ms: Duration | None = None
    plan_ms: Duration | None = None
    launch_ms: Duration | None = None
    commit_ms: Duration | None = None
    """After the output was there."""
    emit_ms: Duration | None = None
