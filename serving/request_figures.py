"""What a frontend knows of one request until its terminal answer, and what it reports of it then."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from scheduler.commands import Finished, FinishReason, Generate, Rejected, RequestStats
from serving.call import Call
from serving.replica import Replica

MAX_GAPS: Final = 4096
MAX_MOVES: Final = 1
"""Of a request from replica to replica; one that takes its engine down does not go through all of them."""
_OUTCOMES: Final[Mapping[FinishReason, Literal["stop", "length", "abort"]]] = MappingProxyType(
    {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.ABORT: "abort"}
)


@dataclass(slots=True)
class Entry:
    """One request whose terminal answer has not come."""

    request: Generate
    call: Call
    index: int
    """In the call."""
    choices: int
    """Of the call."""
    endpoint: str
    begun_s: float
    replica: Replica | None = None
    """That was asked last; None before the first."""
    moves: int = 0
    """Times that it went to another replica."""
    first_s: float | None = None
    last_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list[float])
    abandoned: bool = False

    @property
    def movable(self) -> bool:
        """Whether another replica may answer it, as far as is known here: nothing of its answer has come."""
        return self.first_s is None and self.moves < MAX_MOVES and not self.abandoned

    def note(self, num_tokens: int, now_s: float) -> None:
        """Time the arrival of tokens."""
        if not num_tokens:
            return
        if self.first_s is None:
            self.first_s = now_s
        elif len(self.gaps_s) + num_tokens <= MAX_GAPS:
            self.gaps_s += [(now_s - self.last_s) / num_tokens] * num_tokens
        self.last_s = now_s


def measure(entry: Entry, answer: Finished | Rejected | None, frontend: int, now_s: float) -> RequestStats:
    """The figures of a request that has ended; without an answer its engine is gone."""
    done = answer if isinstance(answer, Finished) else None
    times = done.times if done else None
    ttft = entry.first_s - entry.begun_s if entry.first_s is not None else None
    if ttft is None and times is not None and done is not None and done.output_tokens:
        ttft = max(0, times.first_token_ns - times.arrived_ns) / 1e9
    refused: Literal["rejected", "error"] = "rejected" if answer else "error"
    return RequestStats(
        frontend=frontend,
        endpoint=entry.endpoint,
        outcome=_OUTCOMES[done.reason] if done else refused,
        prompt_tokens=done.prompt_tokens if done else len(entry.request.prompt),
        output_tokens=done.output_tokens if done else 0,
        cached_tokens=done.cached_tokens if done else 0,
        queue_s=_between_s(times.arrived_ns, times.admitted_ns) if times else 0.0,
        ttft_s=ttft,
        e2e_s=now_s - entry.begun_s,
        inter_token_s=entry.gaps_s,
        streaming=entry.request.stream,
        max_tokens=entry.request.params.max_new_tokens,
        choices=entry.choices,
        prefill_s=_between_s(times.admitted_ns, times.first_token_ns) if times else 0.0,
        decode_s=_between_s(times.first_token_ns, times.finished_ns) if times else 0.0,
        retractions=done.retractions if done else 0,
        refusal=answer.code if isinstance(answer, Rejected) else "",
    )


def _between_s(start_ns: int, end_ns: int) -> float:
    """Seconds between two moments; 0 where one of them never came."""
    return max(0, end_ns - start_ns) / 1e9 if start_ns and end_ns else 0.0
