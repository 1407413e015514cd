"""From a step's output to answers: the only writer of a request's output and finish."""

from dataclasses import dataclass

from msgspec import structs

from model.interface import Family, Shapes, StepHandle, StepOutput
from scheduler.batch_builder import first_piece_row
from scheduler.commands import Delta, Finished, FinishReason, Rejected, TokenLogprobs
from scheduler.observe import Monitor
from scheduler.planner import Piece, Plan
from scheduler.port import Answer
from scheduler.request import Finish, Request
from scheduler.roster import Roster
from scheduler.stop import finish_after
from scheduler.story import story_of


@dataclass(slots=True, frozen=True)
class Step:
    """A launched plan."""

    plan: Plan
    handle: StepHandle


class Results:
    """Applies what steps computed, and ends requests."""

    def __init__(self, roster: Roster, monitor: Monitor, shapes: Shapes) -> None:
        self._roster = roster
        self._monitor = monitor
        self._shapes = shapes

    def commit(self, plan: Plan, output: StepOutput, now_ns: int) -> list[Answer]:
        """Give every request its token. Rows of requests that have ended are dropped."""
        answers: list[Answer] = []
        tokens = output.tokens.tolist()
        for row, request in enumerate(plan.decode):
            request.unread -= 1
            request.inflight -= 1
            if request.finish is None:
                self._append(request, tokens[row], row, output, now_ns, answers)
            elif not request.unread:
                self._roster.release(request)
        for row, piece in enumerate(plan.pieces, first_piece_row(self._shapes, plan)):
            request = piece.request
            request.unread -= 1
            request.inflight -= piece.samples
            if request.finish is not None:
                if not request.unread:
                    self._roster.release(request)
            elif piece.samples:
                self._append(request, tokens[row], row, output, now_ns, answers)
            else:
                if plan.family is Family.SCORE:
                    _append_scores(piece, output)
                if request.max_new == 0 and request.computed == request.goal and not request.unread:
                    answers.append(self.end(request, Finish(FinishReason.LENGTH, None, 0), now_ns))
        self._monitor.produced(now_ns)
        return answers

    def drop(self, request: Request, rejected: Rejected, now_ns: int) -> Answer:
        """Make the one terminal answer of a request that waits and has never run."""
        request.finish = Finish(FinishReason.ABORT, None, 0)
        request.waits.settle(now_ns)
        self._roster.answered(request)
        self._monitor.dropped(request)
        story = story_of(request, now_ns)
        self._roster.ended.append(story)
        return request.origin, structs.replace(rejected, times=story.times)

    def end(self, request: Request, finish: Finish, now_ns: int, retry_after_s: float | None = None) -> Answer:
        """Make the one terminal answer; slot and pages go once nothing of it is in flight."""
        request.finish = finish
        request.waits.settle(now_ns)
        self._roster.answered(request)
        self._monitor.ended(request, now_ns)
        story = story_of(request, now_ns)
        self._roster.ended.append(story)
        message = Finished(
            rid=request.rid,
            delta=_delta(request, finish.num_tokens),
            reason=finish.reason,
            matched=finish.matched,
            cause=finish.cause,
            retry_after_s=retry_after_s,
            prompt_tokens=request.prompt_len,
            output_tokens=finish.num_tokens,
            cached_tokens=request.cached_tokens,
            retractions=request.retractions,
            times=story.times,
        )
        return request.origin, message

    def _append(
        self, request: Request, token: int, row: int, output: StepOutput, now_ns: int, answers: list[Answer]
    ) -> None:
        request.output.append(token)
        self._monitor.counters.output_tokens += 1
        if request.params.logprobs is not None:
            request.logprobs.append(_logprobs(token, request.params.logprobs, row, output))
        if not request.first_token_ns:
            request.first_token_ns = now_ns
        finish = finish_after(request, token)
        if finish is not None:
            answers.append(self.end(request, finish, now_ns))
        elif request.stream:
            answers.append((request.origin, _delta(request, len(request.output))))


def _delta(request: Request, end: int) -> Delta:
    """What the frontend has not had yet of the first ``end`` output tokens."""
    start, request.sent = request.sent, max(request.sent, end)
    logprobs = None if request.params.logprobs is None else request.logprobs[start:end]
    if request.opened:
        return Delta(rid=request.rid, tokens=request.output[start:end], logprobs=logprobs)
    request.opened = True
    return Delta(
        rid=request.rid,
        tokens=request.output[start:end],
        logprobs=logprobs,
        prompt_logprobs=_prompt_logprobs(request),
        cached_tokens=request.cached_tokens,
    )


def _prompt_logprobs(request: Request) -> list[TokenLogprobs] | None:
    """Those of the positions asked for; position 0 has none, as nothing comes before it."""
    params = request.params
    if params.prompt_logprobs is None:
        return None
    if params.prompt_logprobs_from == 0:
        return [TokenLogprobs(int(request.prompt[0]), None, [], []), *request.scores]
    return request.scores


def _append_scores(piece: Piece, output: StepOutput) -> None:
    request = piece.request
    count = request.params.prompt_logprobs or 0
    for index in range(piece.length):
        token = int(request.prompt[piece.start + index + 1])
        request.scores.append(_logprobs(token, count, index, output))


def _logprobs(token: int, count: int, row: int, output: StepOutput) -> TokenLogprobs:
    """One position's, with its ``count`` best tokens."""
    assert output.logprobs is not None, "a full step yields log probabilities"
    if not count:
        return TokenLogprobs(token, float(output.logprobs[row]), [], [])
    assert output.top_ids is not None, "a full step yields the best tokens"
    assert output.top_logprobs is not None, "a full step yields the best tokens' log probabilities"
    return TokenLogprobs(
        token,
        float(output.logprobs[row]),
        output.top_ids[row, :count].tolist(),
        output.top_logprobs[row, :count].tolist(),
    )
