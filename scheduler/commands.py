"""The wire between frontends, engine and collector: tagged msgspec structs in MessagePack.

Every list has a bound; a frame that does not decode is dropped by the receiver and counted.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

RequestId = str
"""Unique within the service: the frontend that made it appends its own suffix."""

Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Rid = Annotated[str, Meta(min_length=1, max_length=256)]


class Reason(StrEnum):
    """Why a request waits. The planner names one; time is charged to it when it changes."""

    NEW = "new"
    """Arrived; not yet seen by a plan."""
    QUEUED_BEHIND = "queued_behind"
    """An earlier request is held back, and this one may not pass it or was not tried."""
    NO_SLOT = "no_slot"
    NO_PAGES = "no_pages"
    """Its pages, or the estimate of what running requests still need, do not fit."""
    TOKEN_BUDGET = "token_budget"
    PIECE_LIMIT = "piece_limit"
    IN_FLIGHT = "in_flight"
    """A running row whose launched steps must be read first."""
    PREFIX_PENDING = "prefix_pending"
    """Another request computes its prefix in this step; it waits in order to share it."""
    LOADING = "loading"
    """Its cached pages are on their way to the device."""
    PAUSED = "paused"
    DRAINING = "draining"
    """The plan waits for steps in flight before it can go on."""
    RETRACTED = "retracted"
    PREEMPTED = "preempted"
    """It gave way to a more urgent request."""
    RUNNING = "running"


class FinishReason(StrEnum):
    """How a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class AbortCause(StrEnum):
    """Who ended a request that was aborted."""

    ASKED = "asked"
    RUNNING_TIMEOUT = "running_timeout"


class SamplingParams(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the tokens of one request are chosen and when it ends. Validated by the frontend."""

    max_new_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    min_new_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    temperature: Annotated[float, Meta(ge=0, le=100)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    """0 is off."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] = 1.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[tuple[tuple[Token, Annotated[float, Meta(ge=-100, le=100)]], ...], Meta(max_length=300)] = ()
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None
    stop_token_ids: Annotated[tuple[Token, ...], Meta(max_length=8)] = ()
    ignore_eos: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    """None: no logprobs; k: of the chosen token and of the k best."""
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    prompt_logprobs_from: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    """First prompt position whose log probability is wanted (position 0 has none)."""


# ---- frontend -> engine


class Generate(Struct, frozen=True, kw_only=True, tag="generate", omit_defaults=True):
    """Continue a prompt. Exactly one terminal answer follows: Finished or Rejected."""

    rid: Rid
    group: Rid | None = None
    """The id by which the client knows it; the choices of one call share it."""
    prompt: Annotated[list[Token], Meta(min_length=1, max_length=2**24)]
    params: SamplingParams
    stream: bool = True
    """Whether deltas are wanted as they come; otherwise they are held until the end."""
    extra_key: Annotated[str, Meta(max_length=1024)] | None = None
    cache_salt: Annotated[str, Meta(max_length=1024)] | None = None
    """Cache namespace: pages are shared only under the same key and the same salt."""
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    """None is the least urgent there is. Means nothing unless the launch file orders by priority."""
    routing_key: Annotated[str, Meta(max_length=256)] | None = None
    """Means nothing unless the launch file orders by routing key."""


class Abort(Struct, frozen=True, kw_only=True, tag="abort"):
    """End every request whose ``rid`` or ``group`` is exactly this, wherever it is. Unknown ids are ignored."""

    rid: Rid


class AbortAll(Struct, frozen=True, kw_only=True, tag="abort_all"):
    """End every request."""


class Stop(Struct, frozen=True, kw_only=True, tag="stop"):
    """A stop string was found: the request ends with its first ``num_tokens`` output tokens."""

    rid: Rid
    num_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    matched: Annotated[str, Meta(max_length=8192)]


class FlushCache(Struct, frozen=True, kw_only=True, tag="flush_cache"):
    """Forget every cached prefix; refused unless the engine is idle."""

    call: Rid


class GetState(Struct, frozen=True, kw_only=True, tag="get_state"):
    """Ask for the engine's state."""

    call: Rid


class Shutdown(Struct, frozen=True, kw_only=True, tag="shutdown"):
    """Abort everything and leave the loop."""


Command = Generate | Abort | AbortAll | Stop | FlushCache | GetState | Shutdown


# ---- engine -> frontend


class TokenLogprobs(Struct, frozen=True, array_like=True):
    """Log probabilities of one position: the token's own and the best ones, best first."""

    token: int
    logprob: float | None
    top_ids: list[int]
    top_logprobs: list[float]


class Delta(Struct, frozen=True, kw_only=True, tag="delta", omit_defaults=True):
    """New output tokens of one request."""

    rid: RequestId
    tokens: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    """All of the prompt's, once, with the first delta."""
    cached_tokens: int = 0
    """Prompt tokens taken from the cache; with the first delta."""


class RequestTimes(Struct, frozen=True, kw_only=True):
    """Nanoseconds of the engine's clock, which is read once a turn, before the turn's step is launched and one is read.

    So ``first_token_ns`` and ``finished_ns`` may lie up to one step before the token was there. Replays need it so;
    what a client waited is measured by its frontend.
    """

    arrived_ns: int
    admitted_ns: int
    first_token_ns: int
    finished_ns: int
    waited_ns: dict[str, int]
    """By ``Reason``; the parts sum to finished − arrived."""


class Finished(Struct, frozen=True, kw_only=True, tag="finished", omit_defaults=True):
    """Terminal answer of an accepted request; its last tokens come with it."""

    rid: RequestId
    delta: Delta
    reason: FinishReason
    matched: int | str | None = None
    """The stop token id or stop string that ended it."""
    cause: AbortCause = AbortCause.ASKED
    """Of an abort."""
    retry_after_s: float | None = None
    """With a time-out: when to try again."""
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    retractions: int = 0
    times: RequestTimes


class Rejected(Struct, frozen=True, kw_only=True, tag="rejected", omit_defaults=True):
    """Terminal answer of a request that was not accepted, or that was dropped from the queue before it ever ran."""

    rid: RequestId
    status: int
    code: Literal[
        "context_length_exceeded",
        "request_too_large",
        "queue_full",
        "displaced",
        "waiting_timeout",
        "draining",
        "invalid_request",
        "duplicate_id",
        "internal_error",
    ]
    message: str
    param: str | None = None
    retry_after_s: float | None = None


class Reply(Struct, frozen=True, kw_only=True, tag="reply"):
    """Answer to a control command."""

    call: str
    success: bool
    message: str
    state: dict[str, str | int | float | bool | None] = {}


class Ready(Struct, frozen=True, kw_only=True, tag="ready"):
    """The engine serves (document: O-11)."""

    status: Literal["ready"]
    max_total_num_tokens: int
    max_req_input_len: int
    context_length: int
    vocab_size: int
    eos_token_ids: list[int]
    folder: str
    """The model in Hugging Face layout, without need of weights: tokenizer, template, configs."""
    served_name: str
    max_running_requests: int
    architecture: str
    banner: list[str]
    """Lines that describe the resolved configuration and the memory plan."""


FAILED: Final = "failed"
"""Stage of the last Progress of an engine that cannot start or go on; its ``detail`` says why."""


class Progress(Struct, frozen=True, kw_only=True, tag="progress"):
    """Start-up as it goes on."""

    stage: str
    done: int
    total: int
    detail: str = ""


class Batch(Struct, frozen=True, kw_only=True, tag="batch"):
    """Answers of one step for one frontend."""

    messages: list[Delta | Finished | Rejected]


Message = Batch | Reply | Ready | Progress


# ---- engine, frontends -> collector


class StepStats(Struct, frozen=True, kw_only=True, tag="step_stats"):
    """The engine's figures after a step or on becoming idle. Counters are totals since start."""

    replica: int
    step: int
    time_ns: int
    num_running: int
    num_queued: int
    tokens_used: int
    """Pages in use by running requests × page size; 0 as soon as the last one has been answered."""
    tokens_cached: int
    tokens_total: int
    waiting_prompt_tokens: int
    pending_prompt_tokens: int
    """Prompt tokens not yet computed, waiting and running."""
    gen_throughput: float
    """Output tokens a second over the recent window; 0 when idle."""
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    steps_decode: int
    steps_mixed: int
    steps_score: int
    padded_tokens: int
    scheduled_tokens: int
    retractions: int
    evicted_tokens: int
    finished: int
    aborted: int
    rejected: int
    late_compiles: int
    new_token_ratio: float
    preemptions: int = 0
    """Of the retractions, those in favour of a more urgent request."""
    displaced: int = 0
    """Dropped from a full queue for a more urgent request."""
    waiting_timeouts: int = 0
    running_timeouts: int = 0


class RequestStats(Struct, frozen=True, kw_only=True, tag="request_stats"):
    """One finished request as its frontend saw it. Seconds."""

    frontend: int
    endpoint: str
    outcome: Literal["stop", "length", "abort", "rejected", "error"]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    queue_s: float
    ttft_s: float | None
    e2e_s: float
    inter_token_s: list[float]
    """Bounded: at most 4096 gaps; longer requests report a sample."""


Stats = StepStats | RequestStats
