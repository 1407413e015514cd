"""Answers of a completion, whole and in chunks, with the prompt before them where echoed."""

from collections.abc import Sequence

import msgspec
from msgspec import UNSET

from scheduler.commands import TokenLogprobs
from serving.answer import Answer, TextDelta
from serving.protocol.openai import Body, CompletionChoice, CompletionLogprobs
from serving.protocol.reply import Head, TokenNames, floored, pad_prompt, usage, whole_usage
from serving.protocol.reply_chat import finish_word
from serving.protocol.sse import frame

_encode = msgspec.json.Encoder().encode


class CompletionWriter:
    """Writes ``text_completion`` bodies and chunks.

    ``echoes`` holds, for each choice, the prompt's text and ids where it is to be repeated, else nothing at all.
    """

    def __init__(
        self, head: Head, top_logprobs: int | None, names: TokenNames, echoes: Sequence[tuple[str, list[int]]]
    ) -> None:
        self._head = head
        self._top = top_logprobs
        self._names = names
        self._echoes = dict(enumerate(echoes))
        self._offsets: dict[int, int] = {}

    @property
    def shows_waits(self) -> bool:
        """Where it was asked for."""
        return self._head.explain

    def opening(self) -> bytes:
        """Nothing."""
        return b""

    def event(self, answer: Answer, delta: TextDelta) -> bytes:
        """One chunk; its last one says why it ended."""
        choice = self._choice(delta)
        if not choice.text and delta.ending is None and self._top is None:
            return b""
        head = self._head
        used = None if head.include_usage else UNSET
        if head.continuous_usage:
            used = usage([answer], 1)
        return frame(_encode(self._body([choice], used)))

    def closing(self, answers: Sequence[Answer]) -> bytes:
        """The usage, in a chunk without choices."""
        if not self._head.include_usage:
            return b""
        return frame(_encode(self._body([], whole_usage(answers, self._head))))

    def body(self, answers: Sequence[Answer], deltas: Sequence[TextDelta]) -> bytes:
        """The whole reply."""
        choices = [self._choice(delta) for delta in deltas]
        return _encode(self._body(choices, whole_usage(answers, self._head)))

    def _choice(self, delta: TextDelta) -> CompletionChoice:
        text, entries = delta.text, list(delta.logprobs)
        echoed = self._echoes.pop(delta.index, None)
        if echoed is not None:
            text = echoed[0] + text
            if self._top is not None:
                entries = pad_prompt(delta.prompt_logprobs, echoed[1], 0) + entries
        ending = delta.ending
        return CompletionChoice(
            delta.index,
            text,
            None if ending is None else finish_word(ending.reason),
            None if self._top is None else self._logprobs(delta.index, entries, self._top),
            UNSET if ending is None else ending.matched,
        )

    def _body(self, choices: list[CompletionChoice], used: object) -> Body:
        head = self._head
        return Body(head.id, "text_completion", head.created, head.model, head.fingerprint, choices, used)  # pyright: ignore[reportArgumentType]

    def _logprobs(self, index: int, entries: Sequence[TokenLogprobs], top: int) -> CompletionLogprobs:
        tokens = [self._names.token_text(entry.token) for entry in entries]
        offsets: list[int] = []
        offset = self._offsets.get(index, 0)
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        self._offsets[index] = offset
        values = [None if entry.logprob is None else floored(entry.logprob) for entry in entries]
        return CompletionLogprobs(tokens, values, [self._best(entry, top) for entry in entries], offsets)

    def _best(self, entry: TokenLogprobs, top: int) -> dict[str, float] | None:
        """The best tokens and the chosen one; of tokens spelled alike the likelier stands."""
        if entry.logprob is None:
            return None
        best: dict[str, float] = {}
        for token, value in zip(entry.top_ids[:top], entry.top_logprobs[:top], strict=True):
            best.setdefault(self._names.token_text(token), floored(value))
        best.setdefault(self._names.token_text(entry.token), floored(entry.logprob))
        return best
