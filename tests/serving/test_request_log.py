"""What the log says of requests, level by level."""

import asyncio
import logging
from pathlib import Path

import msgspec
import pytest

from configs.log import FIELDS
from scheduler.commands import (
    Batch,
    Command,
    Delta,
    Finished,
    FinishReason,
    Generate,
    Message,
    Rejected,
    RequestTimes,
    SamplingParams,
)
from serving.engine_wire import EngineGone
from serving.listener import ListenedLink
from serving.request_log import MAX_CHARS, RequestLog
from tests.serving.fakes import make_config, make_ready

PROMPT = [104, 105]


class Script:
    """A link that says what it is told."""

    def __init__(self, messages: list[Message]) -> None:
        self._messages = messages
        self.heard: list[Command] = []

    async def send(self, command: Command) -> None:
        self.heard.append(command)

    async def receive(self) -> Message:
        if not self._messages:
            raise EngineGone("killed")
        return self._messages.pop(0)


def generate(rid: str = "r", prompt: list[int] = PROMPT) -> Generate:
    bias = ((3, 1.5),)
    return Generate(rid=rid, prompt=prompt, params=SamplingParams(max_new_tokens=9, temperature=0.5, logit_bias=bias))


def finished(rid: str, tokens: list[int], count: int) -> Finished:
    times = RequestTimes(arrived_ns=10, admitted_ns=2_000_010, first_token_ns=3, finished_ns=4, waited_ns={})
    delta = Delta(rid=rid, tokens=tokens)
    return Finished(
        rid=rid,
        delta=delta,
        reason=FinishReason.STOP,
        prompt_tokens=2,
        output_tokens=count,
        cached_tokens=1,
        times=times,
    )


def logged(
    level: int, folder: Path, request: Generate, *answers: Message, caplog: pytest.LogCaptureFixture
) -> list[tuple[str, dict]]:
    """The lines of one request: message, fields."""
    log = RequestLog(level)
    log.load_text(make_ready(folder), make_config())
    inner = Script(list(answers))
    link = ListenedLink(inner, log)

    async def go() -> None:
        await link.send(request)
        for _ in answers:
            assert await link.receive() in answers

    caplog.clear()
    with caplog.at_level(logging.INFO, "serving.request_log"):
        asyncio.run(go())
    assert inner.heard == [request]
    records = [record for record in caplog.records if record.name == "serving.request_log"]
    return [(record.getMessage(), record.__dict__[FIELDS]) for record in records]


def answers(rid: str = "r") -> list[Message]:
    return [Batch(messages=[Delta(rid=rid, tokens=[72])]), Batch(messages=[finished(rid, [73, 74], 2)])]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_each_level_says_more_and_only_the_highest_shows_text(
    level: int, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = logged(level, folder, generate(), *answers(), caplog=caplog)
    assert [message for message, _ in lines] == ["request received", "request finished"]
    (_, received), (_, ended) = lines
    assert (received["rid"], received["prompt_tokens"], received["max_new_tokens"]) == ("r", 2, 9)
    assert (ended["reason"], ended["output_tokens"], ended["cached_tokens"], ended["queue_ms"]) == ("stop", 2, 1, 2.0)
    assert ("sampling_params" in received) == (level >= 2)
    assert ("prompt" in received) == ("output" in ended) == (level >= 3)
    if level >= 2:
        assert received["sampling_params"]["temperature"] == 0.5
        assert received["logit_bias"] == 1


def test_text_is_cut_to_what_counts_and_to_a_bound(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = [104] * 100_000
    (_, received), (_, ended) = logged(3, folder, generate(prompt=long), *answers(), caplog=caplog)
    assert 0 < len(received["prompt"]) <= MAX_CHARS
    short = logged(3, folder, generate(), *answers(), caplog=caplog)[1][1]["output"]
    more = logged(3, folder, generate(), Batch(messages=[finished("r", [72, 73, 74], 3)]), caplog=caplog)[1][1][
        "output"
    ]
    assert more.startswith(short)
    assert len(more) > len(short)
    assert ended["output"] == short
    assert len(msgspec.json.encode(received)) < 6 * MAX_CHARS + 2000


def test_a_refusal_ends_the_lines_of_a_request_and_probes_have_none(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = Batch(messages=[Rejected(rid="r", status=503, code="queue_full", message="full")])
    lines = logged(1, folder, generate(), refusal, *answers(), caplog=caplog)
    assert [message for message, _ in lines] == ["request received", "request rejected"]
    assert logged(3, folder, generate("health-1"), *answers("health-1"), caplog=caplog) == []


def test_a_request_whose_engine_dies_is_lost_and_one_that_was_answered_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def go() -> None:
        link = ListenedLink(Script([Batch(messages=[finished("done", [72], 1)])]), RequestLog(1))
        for rid in ("open", "done"):
            await link.send(generate(rid))
        await link.receive()
        for _ in range(2):
            with pytest.raises(EngineGone):
                await link.receive()

    with caplog.at_level(logging.INFO, "serving.request_log"):
        asyncio.run(go())
    lines = [(record.getMessage(), record.__dict__[FIELDS]["rid"]) for record in caplog.records]
    assert lines[2:] == [("request finished", "done"), ("request lost with its engine", "open")]


def test_by_default_nothing_is_logged_of_requests() -> None:
    assert make_config().observe.log_requests == 0
