"""Where a request's time went, as JSON and in words: one reason for every moment, from a closed list."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from scheduler.commands import Phase, Reason, Story

WORDS: Final[Mapping[Reason, str]] = MappingProxyType(
    {
        Reason.TOKENIZING: "being read and tokenized",
        Reason.NEW: "on the way to the engine",
        Reason.QUEUED_BEHIND: "behind others",
        Reason.NO_SLOT: "for a free slot",
        Reason.NO_PAGES: "for pages",
        Reason.TOKEN_BUDGET: "for room in a step",
        Reason.PIECE_LIMIT: "for a step with fewer prompts",
        Reason.IN_FLIGHT: "for its own step to be read",
        Reason.PREFIX_PENDING: "for another request to compute their common prefix",
        Reason.LOADING: "for cached pages to be loaded",
        Reason.PAUSED: "in a pause",
        Reason.DRAINING: "for steps in flight to be read",
        Reason.RETRACTED: "after its pages were taken",
        Reason.PREEMPTED: "after it gave way",
        Reason.PREFILL: "prefill",
        Reason.DECODE: "decode",
        Reason.STALLED_READER: "for the client to read",
    }
)
WORK: Final = frozenset({Reason.PREFILL, Reason.DECODE})


class PhaseBody(Struct, frozen=True):
    """A stretch of time with one reason."""

    start_s: float
    """Since the request's beginning."""
    duration_s: float
    reason: str
    detail: str


class Explanation(Struct, frozen=True, kw_only=True):
    """One request. ``waits`` and, while ``omitted`` is 0, the durations of ``phases`` add up to ``wall_s``."""

    id: str
    request_id: str
    """The engine's id of this choice."""
    state: str
    outcome: str | None
    reason: str
    """Of now, or the last."""
    sentence: str
    wall_s: float
    waits: dict[str, float]
    phases: list[PhaseBody]
    omitted: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    retractions: int


def explanation(story: Story) -> Explanation:
    """A story for people and programs."""
    times = story.times
    pieces = [phase for phase in times.phases if phase.reason is Reason.PREFILL and phase.last]
    numbers = {phase.start_ns: index for index, phase in enumerate(pieces, 1)}
    count = _num_pieces(story, pieces)
    last = times.phases[-1].reason if times.phases else times.reason
    return Explanation(
        id=story.group or story.rid,
        request_id=story.rid,
        state=story.state,
        outcome=story.outcome or None,
        reason=last.value if story.state == "ended" else times.reason.value,
        sentence=sentence(story, count),
        wall_s=(times.finished_ns - times.arrived_ns) / 1e9,
        waits={reason: spent / 1e9 for reason, spent in times.waited_ns.items()},
        phases=[
            PhaseBody(
                (phase.start_ns - times.arrived_ns) / 1e9,
                (phase.end_ns - phase.start_ns) / 1e9,
                phase.reason.value,
                detail(phase, numbers.get(phase.start_ns, 0), count, story.prompt_tokens),
            )
            for phase in times.phases
        ],
        omitted=times.omitted,
        prompt_tokens=story.prompt_tokens,
        cached_tokens=story.cached_tokens,
        output_tokens=story.output_tokens,
        retractions=story.retractions,
    )


def detail(phase: Phase, number: int, count: int, prompt_tokens: int) -> str:
    """One phase in words."""
    if phase.reason is Reason.PREFILL and phase.last:
        return f"piece {number} of {count}: tokens {phase.first} to {phase.last} of {max(prompt_tokens, phase.last)}"
    if phase.by is not None:
        return f"gave way to {phase.by}"
    return WORDS[phase.reason]


def sentence(story: Story, num_pieces: int) -> str:
    """The whole in one plain sentence."""
    spent = {Reason(name): ns / 1e9 for name, ns in story.times.waited_ns.items()}
    waits = sorted((item for item in spent.items() if item[0] not in WORK), key=lambda item: -item[1])
    total = sum(seconds for _, seconds in waits)
    parts = [f"{_seconds(seconds)} {WORDS[reason]}" for reason, seconds in waits if seconds >= 0.0005]
    said = f"waited {_seconds(total)}" + (f": {', '.join(parts)}" if parts else "")
    if prefill := spent.get(Reason.PREFILL):
        cached = f", {story.cached_tokens} tokens from the cache" if story.cached_tokens else ""
        pieces = f"{num_pieces} piece{'s' * (num_pieces != 1)}, " if num_pieces else ""
        said += f"; {_seconds(prefill)} of prefill ({pieces}{story.prompt_tokens} prompt tokens{cached})"
    if decode := spent.get(Reason.DECODE):
        said += f"; {_seconds(decode)} of decode ({story.output_tokens} tokens so far)"
    if story.state == "ended":
        return f"{said.replace(' so far', '')}; ended: {story.outcome}."
    return f"{said}; it {'runs' if story.state == 'running' else 'waits'}: {WORDS[story.times.reason]}."


def _num_pieces(story: Story, pieces: list[Phase]) -> int:
    """Pieces of the prompt in all: of one that is not through, as many as there will be if they stay as long."""
    if not pieces or story.state != "running":
        return len(pieces)
    last = pieces[-1]
    return len(pieces) + -(-max(0, story.prompt_tokens - last.last) // (last.last - last.first))


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 0.95 else f"{round(seconds * 1000)} ms"
