"""What every way of answering shares: the writer's protocol, usage, and log probabilities as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import structs

from scheduler.commands import TokenLogprobs
from serving.answer import Answer, TextDelta
from serving.protocol.openai import PromptTokensDetails, Usage

FLOOR = -9999.0
"""JSON has no minus infinity."""
RUNNING_TIMEOUT = "Request running timeout reached."
"""What a client reads whose request ran for too long, as in SGLang."""


class Writer(Protocol):
    """Turns the answers of one call into bytes."""

    @property
    def shows_waits(self) -> bool:
        """Whether what the time was spent on is to be written."""
        ...

    def opening(self) -> bytes:
        """Events before any text."""
        ...

    def event(self, answer: Answer, delta: TextDelta) -> bytes:
        """Events for what is new of a choice; may be empty."""
        ...

    def closing(self, answers: Sequence[Answer]) -> bytes:
        """Events after the last choice has ended."""
        ...

    def body(self, answers: Sequence[Answer], deltas: Sequence[TextDelta]) -> bytes:
        """The whole reply, given each choice's merged deltas."""
        ...


class TokenNames(Protocol):
    """Single tokens as text."""

    def token_text(self, token: int) -> str:
        """A token by itself."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """Its bytes."""
        ...


@dataclass(slots=True, frozen=True)
class Head:
    """What is the same in every chunk of a reply."""

    id: str
    created: int
    model: str
    fingerprint: str
    copies: int
    """Choices of each prompt."""
    include_usage: bool
    continuous_usage: bool
    explain: bool = False


def usage(answers: Sequence[Answer], copies: int) -> Usage:
    """Prompts count once: by the first copy of each."""
    prompt = sum(answer.num_prompt for answer in answers[::copies])
    cached = sum(answer.cached_tokens for answer in answers[::copies])
    completion = sum(answer.num_tokens for answer in answers)
    return Usage(prompt, completion, prompt + completion, PromptTokensDetails(cached))


def whole_usage(answers: Sequence[Answer], head: Head) -> Usage:
    """Of all answers of a call; with what the time was spent on where that was asked for and is known."""
    used = usage(answers, head.copies)
    waits = [answer.waits_s for answer in answers if answer.waits_s is not None]
    if not head.explain or not waits:
        return used
    return structs.replace(used, waits=max(waits, key=lambda each: sum(each.values())))


def merge(deltas: Sequence[TextDelta]) -> TextDelta:
    """All deltas of one choice as one."""
    return TextDelta(
        index=deltas[0].index,
        text="".join(delta.text for delta in deltas),
        tokens=[token for delta in deltas for token in delta.tokens],
        logprobs=[entry for delta in deltas for entry in delta.logprobs],
        prompt_logprobs=[entry for delta in deltas for entry in delta.prompt_logprobs],
        ending=deltas[-1].ending,
    )


def floored(logprob: float) -> float:
    """A log probability that JSON can carry."""
    return max(logprob, FLOOR)


def pad_prompt(entries: Sequence[TokenLogprobs], prompt: Sequence[int], start: int) -> list[TokenLogprobs]:
    """One entry for each position of ``prompt[start:]``; the first of all has no log probability."""
    missing = len(prompt) - start - len(entries)
    assert missing <= 1, "only position 0 may lack a log probability"
    return [TokenLogprobs(token, None, [], []) for token in prompt[start : start + missing]] + list(entries)
