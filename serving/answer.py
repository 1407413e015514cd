"""One choice on its way out: token ids become text, stop strings end it, and what was used is counted."""

from dataclasses import dataclass, field

from scheduler.commands import AbortCause, Finished, FinishReason, Stop, TokenLogprobs
from serving.detokenizer import Detokenizer
from serving.stop_strings import StopFinder


@dataclass(slots=True)
class Piece:
    """What came for one request since somebody last looked; later deltas are merged into it."""

    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    cached_tokens: int = 0
    finished: Finished | None = None


@dataclass(slots=True, frozen=True)
class Ending:
    """How a choice ended."""

    reason: FinishReason
    matched: int | str | None
    retractions: int = 0
    cause: AbortCause = AbortCause.ASKED
    """Of an abort."""
    retry_after_s: float | None = None


@dataclass(slots=True, frozen=True)
class TextDelta:
    """What is new of a choice, ready to be written."""

    index: int
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    prompt_logprobs: list[TokenLogprobs]
    ending: Ending | None


class Answer:
    """A pure state machine: pieces in, text out, at most one ``Stop`` for the engine."""

    def __init__(
        self,
        index: int,
        rid: str,
        num_prompt: int,
        detokenizer: Detokenizer,
        stops: tuple[str, ...],
        *,
        keep_stop: bool,
    ) -> None:
        self.index = index
        self.rid = rid
        self.num_prompt = num_prompt
        self.num_tokens = 0
        self.cached_tokens = 0
        self.stop: Stop | None = None
        """Set when a stop string was found before the engine ended the request."""
        self.ended = False
        self.waits_s: dict[str, float] | None = None
        """Seconds by reason up to the end; None until the engine has ended it."""
        self._detokenizer = detokenizer
        self._finder = StopFinder(stops) if stops else None
        self._keep_stop = keep_stop

    def push(self, piece: Piece) -> TextDelta:
        """Take what came. Must not be called again once the delta has an ending."""
        assert not self.ended, "an ended choice takes nothing more"
        finished = piece.finished
        self.cached_tokens = max(self.cached_tokens, piece.cached_tokens, finished.cached_tokens if finished else 0)
        text, used, matched = self._read(piece.tokens, self._num_shown(piece))
        self.num_tokens += used
        ending = None
        if finished is not None:
            ending = _ending(finished)
        if matched is not None:
            ending = self._stop_at(matched, finished)
        elif ending is not None:
            text += self._flush()
        self.ended = ending is not None
        logprobs = piece.logprobs[:used]
        return TextDelta(self.index, text, piece.tokens[:used], logprobs, piece.prompt_logprobs, ending)

    def _num_shown(self, piece: Piece) -> int:
        """Tokens that become text: all but the stop token that ended the request."""
        finished = piece.finished
        trim = finished is not None and finished.reason is FinishReason.STOP and isinstance(finished.matched, int)
        ended_by = finished.matched if finished is not None else None
        hide = trim and not self._keep_stop and piece.tokens[-1:] == [ended_by]
        return len(piece.tokens) - hide

    def _read(self, tokens: list[int], num_shown: int) -> tuple[str, int, str | None]:
        """Text, the number of tokens it took, and the stop string that ended it."""
        push = self._detokenizer.push
        if self._finder is None:
            return "".join([push(token) for token in tokens[:num_shown]]), len(tokens), None
        text = ""
        for i, token in enumerate(tokens[:num_shown]):
            found = self._finder.push(push(token))
            text += found.text
            if found.matched is not None:
                return text + (found.matched if self._keep_stop else ""), i + 1, found.matched
        return text, len(tokens), None

    def _stop_at(self, matched: str, finished: Finished | None) -> Ending:
        """End by a stop string; an engine that ended no later has the last word on the reason."""
        if finished is not None and finished.output_tokens <= self.num_tokens:
            return _ending(finished)
        if finished is None:
            self.stop = Stop(rid=self.rid, num_tokens=self.num_tokens, matched=matched)
        return Ending(FinishReason.STOP, matched, finished.retractions if finished else 0)

    def _flush(self) -> str:
        """What the detokenizer and the stop finder held back, at the end."""
        rest = self._detokenizer.finish()
        if self._finder is None:
            return rest
        found = self._finder.push(rest)
        return found.text if found.matched is not None else found.text + self._finder.finish()


def _ending(finished: Finished) -> Ending:
    """The engine's own word."""
    return Ending(finished.reason, finished.matched, finished.retractions, finished.cause, finished.retry_after_s)
