"""Answers of a chat, whole and in chunks."""

from collections.abc import Sequence

import msgspec
from msgspec import UNSET

from scheduler.commands import FinishReason, TokenLogprobs
from serving.answer import Answer, TextDelta
from serving.protocol.openai import (
    AnswerMessage,
    Body,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    FinishWord,
    TopLogprob,
)
from serving.protocol.reply import Head, TokenNames, floored, usage, whole_usage
from serving.protocol.sse import frame

_encode = msgspec.json.Encoder().encode


def finish_word(reason: FinishReason) -> FinishWord:
    """The wire knows two words; aborts became errors before."""
    return "stop" if reason is FinishReason.STOP else "length"


class ChatWriter:
    """Writes ``chat.completion`` bodies and chunks."""

    def __init__(self, head: Head, num_choices: int, top_logprobs: int | None, names: TokenNames) -> None:
        self._head = head
        self._num_choices = num_choices
        self._top = top_logprobs
        self._names = names

    @property
    def shows_waits(self) -> bool:
        """Where it was asked for."""
        return self._head.explain

    def opening(self) -> bytes:
        """The role of each choice."""
        delta = ChatDelta(role="assistant", content="")
        return b"".join(self._chunk(ChatChunkChoice(index, delta), None) for index in range(self._num_choices))

    def event(self, answer: Answer, delta: TextDelta) -> bytes:
        """One chunk; its last one says why it ended."""
        ending = delta.ending
        if not delta.text and ending is None and self._top is None:
            return b""
        choice = ChatChunkChoice(
            answer.index,
            ChatDelta(content=delta.text if delta.text or ending is None else UNSET),
            None if ending is None else finish_word(ending.reason),
            self._logprobs(delta.logprobs),
            UNSET if ending is None else ending.matched,
        )
        return self._chunk(choice, answer)

    def closing(self, answers: Sequence[Answer]) -> bytes:
        """The usage, in a chunk without choices."""
        if not self._head.include_usage:
            return b""
        return frame(_encode(self._body("chat.completion.chunk", [], whole_usage(answers, self._head))))

    def body(self, answers: Sequence[Answer], deltas: Sequence[TextDelta]) -> bytes:
        """The whole reply."""
        choices: list[ChatChoice] = []
        for delta in deltas:
            assert delta.ending is not None, "a whole reply is complete"
            choices.append(
                ChatChoice(
                    delta.index,
                    AnswerMessage(delta.text),
                    finish_word(delta.ending.reason),
                    self._logprobs(delta.logprobs),
                    delta.ending.matched,
                )
            )
        return _encode(self._body("chat.completion", choices, whole_usage(answers, self._head)))

    def _chunk(self, choice: ChatChunkChoice, answer: Answer | None) -> bytes:
        head = self._head
        used = None if head.include_usage else UNSET
        if head.continuous_usage and answer is not None:
            used = usage([answer], 1)
        return frame(_encode(self._body("chat.completion.chunk", [choice], used)))

    def _body(self, kind: str, choices: list[ChatChoice] | list[ChatChunkChoice], used: object) -> Body:
        head = self._head
        return Body(head.id, kind, head.created, head.model, head.fingerprint, choices, used)  # pyright: ignore[reportArgumentType]

    def _logprobs(self, entries: Sequence[TokenLogprobs]) -> ChatLogprobs | None:
        if self._top is None:
            return None
        return ChatLogprobs([self._logprob(entry, self._top) for entry in entries])

    def _logprob(self, entry: TokenLogprobs, top: int) -> ChatLogprob:
        best = zip(entry.top_ids[:top], entry.top_logprobs[:top], strict=True)
        names = self._names
        return ChatLogprob(
            names.token_text(entry.token),
            floored(entry.logprob or 0.0),
            list(names.token_bytes(entry.token)),
            [TopLogprob(names.token_text(i), floored(value), list(names.token_bytes(i))) for i, value in best],
        )
