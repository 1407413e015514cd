"""One request as the scheduler knows it: tokens, progress, and what it waits for."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from model.interface import Int32
from scheduler.channel import Origin
from scheduler.commands import AbortCause, FinishReason, Phase, Reason, SamplingParams, TokenLogprobs
from scheduler.kv_cache import Lease

MAX_PHASES: Final = 128
"""Of one request that are kept apart."""


class Finish(NamedTuple):
    """How a request ended, and how many of its output tokens count."""

    reason: FinishReason
    matched: int | str | None
    num_tokens: int
    cause: AbortCause = AbortCause.ASKED


class Waits:
    """Charges a request's time to one reason after another; the parts sum to the whole, and phases leave no gap."""

    __slots__ = ("_by", "_first", "_last", "omitted", "phases", "reason", "since_ns", "total_ns")

    def __init__(self, now_ns: int) -> None:
        self.reason = Reason.NEW
        self.since_ns = now_ns
        self.total_ns: dict[str, int] = {}
        self.phases: list[Phase] = []
        """The first ``MAX_PHASES`` that are over."""
        self.omitted = 0
        self._first = self._last = 0
        self._by: str | None = None

    def change(self, reason: Reason, now_ns: int, by: str | None = None) -> None:
        """Charge the time since the last change to the old reason. ``by``: who caused the new one."""
        if reason is not self.reason:
            self.settle(now_ns)
            self.reason, self._first, self._last, self._by = reason, 0, 0, by

    def piece(self, first: int, last: int, now_ns: int) -> None:
        """The tokens ``[first, last)`` of the prompt are computed from now on."""
        self.settle(now_ns)
        self.reason, self._first, self._last, self._by = Reason.PREFILL, first, last, None

    def settle(self, now_ns: int) -> None:
        """Charge the time up to now to the current reason."""
        elapsed = now_ns - self.since_ns
        if elapsed:
            self.total_ns[self.reason.value] = self.total_ns.get(self.reason.value, 0) + elapsed
            if len(self.phases) < MAX_PHASES:
                self.phases.append(self.current(now_ns))
            else:
                self.omitted += 1
        self.since_ns = now_ns

    def current(self, now_ns: int) -> Phase:
        """The phase that is not over."""
        return Phase(self.reason, self.since_ns, now_ns, self._first, self._last, self._by)


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """State of one accepted request.

        prompt             output        in flight
    |-----------------|--------------|--?--?--|
    |.... computed ............|        length^
    """

    rid: str
    group: str | None
    origin: Origin
    number: int
    """Order of arrival; names the request in recordings."""
    prompt: Int32
    params: SamplingParams
    """With its seed drawn."""
    stream: bool
    namespace: bytes
    routing_key: str | None = None
    """Requests with the same one are admitted together by ``order: routing-key``."""
    max_new: int
    """``max_new_tokens``, cut to what context and pool allow."""
    stop_ids: frozenset[int]
    max_inflight: int
    """Sampled tokens that may be unread when another row of it is planned."""
    arrived_ns: int
    waits: Waits
    urgency: int = 0
    """Larger is more urgent (``scheduler.priority``)."""

    prompt_len: int = 0
    goal: int = 0
    """Tokens whose KV is computed in all: the last token sampled needs none."""
    score_end: int = 0
    """Prompt positions below this are scored; 0 without prompt log probabilities."""
    next_score: int = 0
    """First position not yet handed to a score step."""
    penalized: bool = False
    needs_full: bool = False
    """Whether every row that samples needs the ``full`` variant."""
    lean: bool = True
    """Whether none ever does."""

    output: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    scores: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    computed: int = 0
    """Tokens whose KV has been launched."""
    inflight: int = 0
    """Sampled tokens that have been launched and not read."""
    unread: int = 0
    """Rows that have been launched and not read, whether they sample or not."""
    planned: int = 0
    """Step that last held a row of it."""
    lease: Lease | None = None
    loading: bool = False
    """Whether it waits for a prefetch from the storage."""
    finish: Finish | None = None
    sent: int = 0
    """Output tokens already given to the frontend."""
    opened: bool = False
    """Whether a delta has gone out."""
    cached_tokens: int = 0
    retractions: int = 0
    """Times that it went back to the queue, for whatever reason."""
    passed_over: int = 0
    """Requests that were admitted in its stead while it waited."""
    preemptions: int = 0
    """Times that it gave way to a more urgent request."""
    admitted_ns: int = 0
    first_token_ns: int = 0

    def __post_init__(self) -> None:
        params = self.params
        self.prompt_len = len(self.prompt)
        self.goal = self.prompt_len + max(self.max_new - 1, 0)
        if params.prompt_logprobs is not None and params.prompt_logprobs_from < self.prompt_len:
            self.score_end = self.prompt_len - 1
            self.next_score = max(params.prompt_logprobs_from - 1, 0)
        self.penalized = (
            params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        )
        self.needs_full = self.penalized or bool(params.logit_bias) or params.logprobs is not None
        self.lean = not (self.needs_full or params.min_new_tokens)

    @property
    def length(self) -> int:
        """Tokens of it, those in flight included."""
        return self.prompt_len + len(self.output) + self.inflight

    @property
    def known(self) -> int:
        """Tokens of it whose ids are on the host and whose KV has been launched."""
        return min(self.computed, self.prompt_len + len(self.output))

    @property
    def last_token(self) -> int:
        """The last token whose id is on the host."""
        return self.output[-1] if self.output else int(self.prompt[-1])

    @property
    def work(self) -> Reason:
        """What its time is spent on while nothing holds it back."""
        if self.lease is None:
            return Reason.QUEUED_BEHIND
        return Reason.DECODE if self.output else Reason.PREFILL

    @property
    def scoring(self) -> bool:
        """Whether prompt positions are still to be scored."""
        return self.next_score < self.score_end

    @property
    def piece_end(self) -> int:
        """Where its next ordinary piece ends at the latest."""
        return self.next_score if self.scoring else self.length

    @property
    def match_end(self) -> int:
        """Tokens that may come from the cache: what is to be scored or sampled from must be computed."""
        return self.next_score if self.scoring else self.length - 1

    def tokens(self, start: int, end: int) -> Int32:
        """Ids of the tokens ``[start, end)``, all of them on the host."""
        split = self.prompt_len
        if end <= split:
            return self.prompt[start:end]
        tail = np.array(self.output[max(start - split, 0) : end - split], np.int32)
        return tail if start >= split else np.concatenate([self.prompt[start:], tail])
