"""Answers of ``/generate``: bodies, and events that carry all the text so far."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET

from scheduler.commands import AbortCause, FinishReason, SamplingParams, TokenLogprobs
from serving.answer import Answer, Ending, TextDelta
from serving.protocol.native import Aborted, GenerateBody, LogprobTriple, MetaInfo, OutOfLength, Stopped
from serving.protocol.reply import RUNNING_TIMEOUT, floored, pad_prompt
from serving.protocol.sse import frame

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True, frozen=True)
class Asked:
    """What the reply needs to know of one choice's request."""

    id: str
    prompt: list[int]
    params: SamplingParams


@dataclass(slots=True)
class _SoFar:
    text: str = ""
    tokens: list[int] = field(default_factory=list[int])
    output: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    prompt: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])


class NativeWriter:
    """Writes SGLang's shapes. ``listed``: the reply is a list, and its events carry an index."""

    def __init__(self, asked: Sequence[Asked], *, listed: bool) -> None:
        self._asked = asked
        self._listed = listed
        self._so_far = [_SoFar() for _ in asked]
        self._begun_s = time.monotonic()

    @property
    def shows_waits(self) -> bool:
        """Never: ``/explain`` does."""
        return False

    def opening(self) -> bytes:
        """Nothing."""
        return b""

    def event(self, answer: Answer, delta: TextDelta) -> bytes:
        """Everything so far of one choice."""
        self._add(delta)
        return frame(_encode(self._reply(answer, delta.ending)))

    def closing(self, answers: Sequence[Answer]) -> bytes:
        """Nothing."""
        return b""

    def body(self, answers: Sequence[Answer], deltas: Sequence[TextDelta]) -> bytes:
        """The whole reply."""
        for delta in deltas:
            self._add(delta)
        replies = [self._reply(answer, delta.ending) for answer, delta in zip(answers, deltas, strict=True)]
        if self._listed:
            return _encode(replies)
        return _encode(msgspec.structs.replace(replies[0], index=UNSET))

    def _add(self, delta: TextDelta) -> None:
        so_far = self._so_far[delta.index]
        so_far.text += delta.text
        so_far.tokens += delta.tokens
        so_far.output += delta.logprobs
        so_far.prompt += delta.prompt_logprobs

    def _reply(self, answer: Answer, ending: Ending | None) -> GenerateBody:
        so_far = self._so_far[answer.index]
        asked = self._asked[answer.index]
        return GenerateBody(
            text=so_far.text,
            output_ids=so_far.tokens,
            meta_info=self._meta(answer, ending, so_far, asked),
            index=answer.index if self._listed else UNSET,
        )

    def _meta(self, answer: Answer, ending: Ending | None, so_far: _SoFar, asked: Asked) -> MetaInfo:
        params = asked.params
        top = params.logprobs
        prompt: list[TokenLogprobs] = []
        if params.prompt_logprobs is not None:
            prompt = pad_prompt(so_far.prompt, asked.prompt, params.prompt_logprobs_from)
        return MetaInfo(
            id=asked.id,
            finish_reason=None if ending is None else _finish(ending, answer.num_tokens),
            prompt_tokens=answer.num_prompt,
            completion_tokens=answer.num_tokens,
            cached_tokens=answer.cached_tokens,
            num_retractions=UNSET if ending is None else ending.retractions,
            e2e_latency=UNSET if ending is None else time.monotonic() - self._begun_s,
            input_token_logprobs=UNSET if top is None else _own(prompt),
            output_token_logprobs=UNSET if top is None else _own(so_far.output),
            input_top_logprobs=_best(prompt, top) if top else UNSET,
            output_top_logprobs=_best(so_far.output, top) if top else UNSET,
        )


def _finish(ending: Ending, num_tokens: int) -> Stopped | OutOfLength | Aborted:
    if ending.reason is FinishReason.STOP:
        return Stopped(ending.matched)
    if ending.reason is FinishReason.LENGTH:
        return OutOfLength(num_tokens)
    return Aborted(RUNNING_TIMEOUT, 503) if ending.cause is AbortCause.RUNNING_TIMEOUT else Aborted()


def _own(entries: Sequence[TokenLogprobs]) -> list[LogprobTriple]:
    return [(None if entry.logprob is None else floored(entry.logprob), entry.token, None) for entry in entries]


def _best(entries: Sequence[TokenLogprobs], top: int) -> list[list[LogprobTriple] | None]:
    return [
        [
            (floored(value), token, None)
            for token, value in zip(entry.top_ids[:top], entry.top_logprobs[:top], strict=True)
        ]
        or None
        for entry in entries
    ]
