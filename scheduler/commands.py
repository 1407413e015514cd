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
StepCount = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Activity = Literal["CPU", "GPU", "MEM"]
Stage = Literal["prefill", "decode"]


class Reason(StrEnum):
    """What a request's time is spent on. The planner names what holds it back; time is charged when that changes."""

    TOKENIZING = "tokenizing"
    """Its frontend reads the body, renders the template and makes tokens."""
    NEW = "new"
    """Handed to the engine; not yet seen by a plan."""
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
    PREFILL = "prefill"
    """A piece of its prompt is computed."""
    DECODE = "decode"
    """Its next tokens are computed."""
    STALLED_READER = "stalled_reader"
    """The engine is done; the client has not taken all of the answer."""


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
    """Cache namespace: pages are shared only under the same adapter, the same key and the same salt."""
    adapter: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    """Of the weights that it wants beside the model's own; refused unless it is loaded."""
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    """None is the least urgent there is. Means nothing unless the launch file orders by priority."""
    routing_key: Annotated[str, Meta(max_length=256)] | None = None
    """Means nothing unless the launch file orders by routing key."""
    trace: Annotated[str, Meta(max_length=64)] | None = None
    """The client's ``traceparent`` (W3C); of no account to the engine."""


class Abort(Struct, frozen=True, kw_only=True, tag="abort"):
    """End every request whose ``rid`` or ``group`` is exactly this, wherever it is. Unknown ids are ignored."""

    rid: Rid


class AbortAll(Struct, frozen=True, kw_only=True, tag="abort_all"):
    """End every request."""


class Recall(Struct, frozen=True, kw_only=True, tag="recall"):
    """Give the request with this ``rid`` back unless it has run: it is to go to another engine."""

    rid: Rid


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


class SetState(Struct, frozen=True, kw_only=True, tag="set_state"):
    """Change settings of the running engine, all of them or none (document: O-41)."""

    call: Rid
    settings: Annotated[dict[str, int | float], Meta(min_length=1, max_length=64)]


class Explain(Struct, frozen=True, kw_only=True, tag="explain"):
    """Ask what happens to the open requests whose ``rid`` or ``group`` is exactly this."""

    call: Rid
    rid: Rid


class Look(Struct, frozen=True, kw_only=True, tag="look"):
    """Ask for what the engine has done since ``since_ns`` of its clock."""

    call: Rid
    since_ns: Annotated[int, Meta(ge=0)] = 0
    tree: bool = False
    """Whether the most used prefixes are wanted too."""


class AttachStorage(Struct, frozen=True, kw_only=True, tag="attach_storage"):
    """Begin to use a storage below the host tier."""

    call: Rid
    directory: Annotated[str, Meta(min_length=1, max_length=4096)]
    prefetch: Literal["best_effort", "wait_complete", "timeout"] | None = None
    """None leaves the policy as it is."""


class DetachStorage(Struct, frozen=True, kw_only=True, tag="detach_storage"):
    """Use the storage no longer; what it holds stays."""

    call: Rid


class ClearStorage(Struct, frozen=True, kw_only=True, tag="clear_storage"):
    """Delete what the storage holds."""

    call: Rid


class StartProfile(Struct, frozen=True, kw_only=True, tag="start_profile", omit_defaults=True):
    """Trace the device and the host for some steps; the fields are those of ``ProfileOptions``."""

    call: Rid
    output_dir: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    start_step: StepCount | None = None
    num_steps: StepCount | None = None
    activities: Annotated[tuple[Activity, ...], Meta(min_length=1, max_length=3)] = ("CPU", "GPU")
    with_stack: bool = False
    record_shapes: bool = False
    profile_by_stage: bool = False
    profile_stages: Annotated[tuple[Stage, ...], Meta(min_length=1, max_length=2)] = ("prefill", "decode")
    profile_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    wait_steps: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    warmup_steps: Annotated[int, Meta(ge=0, le=10_000)] = 0
    active_steps: StepCount | None = None
    repeat: Annotated[int, Meta(ge=1, le=100)] = 1


class StopProfile(Struct, frozen=True, kw_only=True, tag="stop_profile"):
    """End the trace and write it."""

    call: Rid


PauseMode = Literal["abort", "retract", "in_place"]


class PauseGeneration(Struct, frozen=True, kw_only=True, tag="pause_generation"):
    """Launch no more steps; the reply comes once nothing is in flight.

    ``abort`` ends every request, ``retract`` sends the running ones back to the queue, ``in_place`` leaves them their
    slots and pages.
    """

    call: Rid
    mode: PauseMode = "abort"


class ContinueGeneration(Struct, frozen=True, kw_only=True, tag="continue_generation"):
    """End a pause; harmless without one."""

    call: Rid


class FreezeGC(Struct, frozen=True, kw_only=True, tag="freeze_gc"):
    """Collect garbage, and let no later collection look at what is left."""

    call: Rid


class DumpState(Struct, frozen=True, kw_only=True, tag="dump_state"):
    """Ask for the scheduler's state, and have it logged (document: O-33)."""

    call: Rid


class ExpertDistribution(Struct, frozen=True, kw_only=True, tag="expert_distribution"):
    """Record which experts the tokens go to, or place the experts by what was recorded (document: O-42)."""

    call: Rid
    action: Literal["start", "stop", "dump", "rebalance"]


class Shutdown(Struct, frozen=True, kw_only=True, tag="shutdown"):
    """Abort everything and leave the loop."""


Command = (
    Generate
    | Abort
    | AbortAll
    | Recall
    | Stop
    | FlushCache
    | AttachStorage
    | DetachStorage
    | ClearStorage
    | GetState
    | SetState
    | Explain
    | Look
    | StartProfile
    | StopProfile
    | PauseGeneration
    | ContinueGeneration
    | FreezeGC
    | DumpState
    | ExpertDistribution
    | Shutdown
)


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


class Phase(Struct, frozen=True, array_like=True):
    """A stretch of a request's time that has one reason. Nanoseconds of whoever measured it."""

    reason: Reason
    start_ns: int
    end_ns: int
    first: int = 0
    """Of a prompt piece: its tokens ``[first, last)``."""
    last: int = 0
    by: str | None = None
    """Of a preemption: the id of the request that was let in instead."""


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
    phases: list[Phase] = []
    """In order and without a gap; the first ``request.MAX_PHASES``."""
    omitted: int = 0
    """Phases after those; their time is in ``waited_ns``."""
    reason: Reason = Reason.NEW
    """What the rest of the turn is spent on, which the engine's clock does not see."""


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
        "recalled",
        "adapter_not_found",
        "internal_error",
    ]
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    times: RequestTimes | None = None
    """Of one that was dropped from the queue."""


class Story(Struct, frozen=True, kw_only=True):
    """A request as it stands or ended, and where its time went; no text and no token of it."""

    rid: RequestId
    group: str | None
    state: Literal["waiting", "running", "ended"]
    outcome: str
    """How it ended; empty while it is open."""
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    output_tokens: int
    retractions: int
    times: RequestTimes
    """Of an open request up to now, for the reason of now."""


class StepMark(Struct, frozen=True, array_like=True):
    """One step that was read."""

    step: int
    start_ns: int
    """When the device could begin with it."""
    end_ns: int
    family: str
    size: int
    """The bucket in which it ran."""
    tokens: int
    """Without padding."""
    decode_rows: int
    pieces: int
    running: int
    """After it; so is the next."""
    queued: int


class HotPrefix(Struct, frozen=True, array_like=True):
    """A node of the prefix tree."""

    number: int
    parent: int
    """Number of the node above; 0 is the root."""
    pages: int
    uses: int
    age: int
    """Uses of the tree since this node was last used."""
    locked: bool


class Frame(Struct, frozen=True, kw_only=True):
    """What happened in an engine since some time, for the live page. All its lists are bounded."""

    replica: int
    now_ns: int
    steps: list[StepMark]
    stories: list[Story]
    """Running, waiting in the order of the queue, then those that ended since; phases over before are left out."""
    omitted: int
    """Requests that were too many."""
    pages: dict[str, int]
    """By state: free, cached, shared, own."""
    tree: list[HotPrefix] | None
    """The most used prefixes, parents first; None unless asked for."""


StateScalar = str | int | float | bool | None
StateValue = StateScalar | list[StateScalar] | dict[str, StateScalar | list[StateScalar]]


class Reply(Struct, frozen=True, kw_only=True, tag="reply", omit_defaults=True):
    """Answer to a control command."""

    call: str
    success: bool
    message: str
    state: dict[str, StateValue] = {}
    stories: list[Story] = []
    """Of ``Explain``."""
    frame: Frame | None = None
    """Of ``Look``."""
    replica: int = 0
    """Whose answer it is; known to the reader, by the link on which it came."""


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
    page_size: int = 0
    num_pages: int = 0
    replica: int = 0


LeakPool = Literal["tokens", "slots", "host", "state"]
"""Pages of the KV pool; slots of requests; pages of the host tier; whatever else is not as it must be between steps."""

LEAK_POOLS: Final[tuple[LeakPool, ...]] = ("tokens", "slots", "state")
"""Those that every engine has."""

FAILED: Final = "failed"
"""Stage of the last Progress of an engine that cannot start or go on; its ``detail`` says why."""


class Progress(Struct, frozen=True, kw_only=True, tag="progress"):
    """Start-up as it goes on."""

    stage: str
    done: int
    total: int
    detail: str = ""
    replica: int = 0


class Batch(Struct, frozen=True, kw_only=True, tag="batch"):
    """Answers of one step for one frontend."""

    messages: list[Delta | Finished | Rejected]


Message = Batch | Reply | Ready | Progress


# ---- engine, frontends -> collector


class TierStats(Struct, frozen=True, kw_only=True):
    """Figures of the tiers below the cache, in tokens. All but the first two are totals since start."""

    host_used: int
    host_total: int
    cached_host: int
    """Of ``StepStats.cached_tokens``, those that were loaded from host memory, where a request had left them."""
    cached_storage: int
    """Of the same, those that a storage had brought there."""
    saved: int
    """Copied to host memory."""
    loaded: int
    """Copied back, for requests that were retracted too."""
    host_evicted: int
    stored: int
    """Given to the storage, whether it had them already or not."""
    fetched: int
    num_loading: int = 0
    """Requests that wait for the storage now."""


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
    input_throughput: float = 0.0
    """Prompt tokens computed a second over the recent window; 0 when idle."""
    tokens_free: int = 0
    """Of pages that neither a request nor the prefix cache holds."""
    decode_tokens: int = 0
    """Of the scheduled tokens, those of decode rows."""
    retracted_input_tokens: int = 0
    """Prompt tokens of requests, once for each time that they were retracted."""
    retracted_output_tokens: int = 0
    family: Literal["", "decode", "mixed", "score"] = ""
    """Of the step that was read; empty when there was none, and then the next two are 0."""
    size: int = 0
    """The bucket in which it ran."""
    step_tokens: int = 0
    """Its tokens without padding."""
    num_grammar_queue: int | None = None
    """Here and below None stands for a feature that the engine does not have."""
    spec_accept_length: float | None = None
    num_prealloc_queue: int | None = None
    num_transfer_queue: int | None = None
    swa_token_usage: float | None = None
    """Share of the window group in use, where there is one; ``tokens_used`` and the like are of the other."""
    paused: bool = False
    """Whether generation stands still on command."""
    leaks: dict[str, int] = {}
    """Found when the engine came to rest, by ``LeakPool``; pools that the engine does not have are absent."""
    tiers: TierStats | None = None
    """None without a host tier."""


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
    streaming: bool = False
    max_tokens: int = 0
    """As asked for."""
    choices: int = 1
    """Of the call that it belongs to."""
    prefill_s: float = 0.0
    """Admission to first token, by the engine's clock; so is the next."""
    decode_s: float = 0.0
    """First token to the end."""
    retractions: int = 0
    refusal: str = ""
    """The code of a rejection."""


class StepTimes(Struct, frozen=True, kw_only=True, tag="step_times"):
    """How long one step took, by the engine process's clock. Seconds."""

    replica: int
    family: Literal["decode", "mixed", "score"]
    size: int
    step_s: float
    """From the end of the step read before to the end of this one, of the time in which there was work."""
    receive_s: float
    """Here and below the work of the host, without its waiting."""
    plan_s: float
    launch_s: float
    commit_s: float
    emit_s: float


class Compiled(Struct, frozen=True, kw_only=True, tag="compiled"):
    """A program of the engine became ready."""

    family: Literal["decode", "mixed", "score"]
    variant: Literal["lean", "full"]
    size: int
    seconds: float
    from_cache: bool
    replica: int = 0


class PlanMade(Struct, frozen=True, array_like=True):
    """A plan, for the comparison with those of other hosts."""

    number: int
    """From 1 on."""
    plan: bytes
    """``Plan.canonical``."""


PLAN_FIELDS: Final = (
    *("family", "size", "decode", "pieces", "admit", "retract", "preempt", "drain", "blocked", "passed", "newcomer"),
)
"""What stands in ``Plan.canonical``, in order."""


class Reports(Struct, frozen=True, kw_only=True, tag="reports"):
    """What an engine has to say of its last steps, in order."""

    reports: list[StepStats | StepTimes | Compiled]


Stats = StepStats | RequestStats | StepTimes | Compiled
