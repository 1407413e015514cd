"""What the log says of every request (``observe.log_requests``): one line when it is sent, one when it ends."""

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from configs.log import FIELDS
from configs.schema import EngineConfig
from scheduler.commands import Delta, Finished, Generate, Ready, Rejected
from serving.listener import PROBES
from serving.text_side import TextSide, load_text_side

FIGURES: Final = 1
PARAMETERS: Final = 2
TEXT: Final = 3
MAX_TOKENS: Final = 512
"""Of a prompt and of an output, that are shown as text."""
MAX_CHARS: Final = 2048

_LOG: Final = logging.getLogger(__name__)
Fields = dict[str, object]


@dataclass(slots=True)
class _Open:
    sent_s: float
    output: list[int] = field(default_factory=list[int])


class RequestLog:
    """Writes the lines, each with its figures as fields.

    Args:
        level: how much to say: figures, sampling parameters too, text too.
    """

    def __init__(self, level: int) -> None:
        self._text_side: TextSide | None = None
        """None until the model's tokenizer was read."""
        self._level = level
        self._open: dict[str, _Open] = {}

    def load_text(self, ready: Ready, config: EngineConfig) -> TextSide:
        """The model's text side, kept for the text of lines. Takes a while."""
        self._text_side = load_text_side(ready, config)
        return self._text_side

    def sent(self, request: Generate) -> None:
        """A request goes to the engine."""
        if request.rid.startswith(PROBES):
            return
        self._open[request.rid] = _Open(time.monotonic())
        fields: Fields = {
            "rid": request.rid,
            "prompt_tokens": len(request.prompt),
            "max_new_tokens": request.params.max_new_tokens,
            "stream": request.stream,
        }
        if self._level >= PARAMETERS:
            params = msgspec.structs.replace(request.params, logit_bias=())
            fields["sampling_params"] = msgspec.to_builtins(params)
            fields["logit_bias"] = len(request.params.logit_bias)
        if self._level >= TEXT:
            fields["prompt"] = self._text(request.prompt)
        _LOG.info("request received", extra={FIELDS: fields})

    def said(self, delta: Delta) -> None:
        """New tokens of a request."""
        entry = self._open.get(delta.rid)
        if entry is not None and self._level >= TEXT:
            entry.output += delta.tokens[: MAX_TOKENS - len(entry.output)]

    def finished(self, answer: Finished) -> None:
        """A request has ended."""
        self.said(answer.delta)
        entry = self._open.pop(answer.rid, None)
        if entry is None:
            return
        times = answer.times
        fields: Fields = {
            "rid": answer.rid,
            "reason": answer.reason.value,
            "prompt_tokens": answer.prompt_tokens,
            "cached_tokens": answer.cached_tokens,
            "output_tokens": answer.output_tokens,
            "retractions": answer.retractions,
            "queue_ms": _ms(times.admitted_ns - times.arrived_ns) if times.admitted_ns else 0.0,
            "e2e_ms": round((time.monotonic() - entry.sent_s) * 1e3, 3),
        }
        if self._level >= TEXT:
            fields["output"] = self._text(entry.output[: answer.output_tokens])
        _LOG.info("request finished", extra={FIELDS: fields})

    def rejected(self, answer: Rejected) -> None:
        """A request was refused."""
        if self._open.pop(answer.rid, None) is not None:
            fields: Fields = {"rid": answer.rid, "code": answer.code, "message": answer.message[:MAX_CHARS]}
            _LOG.info("request rejected", extra={FIELDS: fields})

    def lost(self, rids: Collection[str], reason: str) -> None:
        """Their engine died."""
        for rid in rids:
            if self._open.pop(rid, None) is not None:
                _LOG.info("request lost with its engine", extra={FIELDS: {"rid": rid, "reason": reason}})

    def _text(self, tokens: Sequence[int]) -> str:
        if self._text_side is None:
            return ""
        return self._text_side.tokenizer.decode(tokens[:MAX_TOKENS], skip_special_tokens=False)[:MAX_CHARS]


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)
