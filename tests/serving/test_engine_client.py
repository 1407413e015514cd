import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import Parallel
from scheduler.commands import Delta, Finished, FinishReason, Generate, RequestTimes, SamplingParams, Stop
from serving.answer import Answer, Piece
from serving.call import Call
from serving.detokenizer import ByteDetokenizer
from serving.engine_client import EngineClient
from serving.protocol.errors import RequestError
from serving.protocol.reply import merge
from tests.serving.fakes import FakeEngine, Sink
from tests.serving.process.figures import ready

TIMES = RequestTimes(arrived_ns=0, admitted_ns=0, first_token_ns=0, finished_ns=0, waited_ns={})


def ask(rid: str, num_tokens: int = 4) -> Generate:
    return Generate(rid=rid, prompt=[1], params=SamplingParams(max_new_tokens=num_tokens))


def finished(reason: FinishReason, num_tokens: int, tokens: list[int], matched: int | str | None = None) -> Finished:
    return Finished(
        rid="r",
        delta=Delta(rid="r", tokens=tokens),
        reason=reason,
        matched=matched,
        prompt_tokens=1,
        output_tokens=num_tokens,
        cached_tokens=0,
        times=TIMES,
    )


def answer(*stops: str, keep_stop: bool = False) -> Answer:
    return Answer(0, "r", 1, ByteDetokenizer(lambda token: bytes([token])), stops, keep_stop=keep_stop)


def test_a_slow_reader_finds_its_deltas_merged():
    async def scenario() -> Piece:
        call = Call(1)
        for token in range(1000):
            call.push(0, Delta(rid="r", tokens=[token]), None)
        return (await call.take(1))[0]

    assert asyncio.run(scenario()).tokens == list(range(1000))


def test_waiting_for_news_gives_up_after_its_time():
    assert asyncio.run(Call(1).take(0.01)) == {}


def test_requests_go_to_the_engine_with_the_fewest_open_ones():
    async def scenario() -> list[int]:
        engines = [FakeEngine(lambda request: [1]), FakeEngine(lambda request: [1])]
        client = EngineClient(engines, frontend=0, stats=Sink(), parallel=Parallel(replicas=2))
        reading = asyncio.create_task(client.run())
        for engine in engines:
            engine.say(ready())
        await client.wait_ready()
        await client.open([ask(f"r{i}") for i in range(6)], "/x")
        reading.cancel()
        return [engine.count(Generate) for engine in engines]

    assert asyncio.run(scenario()) == [3, 3]


def test_a_full_run_leaves_no_open_request_and_one_record_each():
    async def scenario() -> Sink:
        sink = Sink()
        engine = FakeEngine(lambda request: [7, 8, 9])
        client = EngineClient([engine], frontend=3, stats=sink)
        reading = asyncio.create_task(client.run())
        call = await client.open([ask("a"), ask("b")], "/v1/completions")
        while call.remaining:
            await call.take(1)
        assert client.num_open == 0
        reading.cancel()
        return sink

    seen = asyncio.run(scenario()).seen
    assert [(s.frontend, s.endpoint, s.outcome, s.output_tokens) for s in seen] == [
        (3, "/v1/completions", "length", 3)
    ] * 2
    assert all(len(s.inter_token_s) == 2 and s.ttft_s is not None and s.ttft_s <= s.e2e_s for s in seen)


def test_a_dead_engine_fails_open_calls_and_refuses_new_ones():
    async def scenario() -> None:
        engine = FakeEngine(lambda request: [1] * 9, pace_s=1)
        client = EngineClient([engine], frontend=0, stats=Sink())
        reading = asyncio.create_task(client.run())
        call = await client.open([ask("a")], "/x")
        engine.die()
        with pytest.raises(RequestError, match="engine stopped"):
            await call.take(5)
        with pytest.raises(RequestError, match="has stopped"):
            await client.open([ask("b")], "/x")
        reading.cancel()

    asyncio.run(scenario())


@given(
    text=st.text(alphabet="abc", max_size=30),
    stop=st.text(alphabet="abc", min_size=1, max_size=3),
    size=st.integers(1, 7),
)
def test_usage_ends_with_the_token_that_completed_the_stop_string(text, stop, size):
    """Contract of stop strings: text, ids and count are cut there, the engine is told, however the pieces fall."""
    tokens = list(text.encode())
    one, deltas = answer(stop), []
    for at in range(0, len(tokens), size):
        deltas.append(one.push(Piece(tokens=tokens[at : at + size])))
        if one.ended:
            break
    if not one.ended:
        deltas.append(one.push(Piece(finished=finished(FinishReason.LENGTH, len(tokens), []))))
    whole = merge(deltas)
    found = text.find(stop)
    if found < 0:
        assert (whole.text, one.num_tokens, one.stop) == (text, len(tokens), None)
        return
    end = found + len(stop)
    assert (whole.text, whole.tokens, one.num_tokens) == (text[:found], tokens[:end], end)
    assert one.stop == Stop(rid="r", num_tokens=end, matched=stop)


def test_an_engine_that_ended_no_later_has_the_last_word():
    one = answer("b")
    delta = one.push(Piece(tokens=list(b"ab"), finished=finished(FinishReason.LENGTH, 2, [])))
    assert delta.ending is not None
    assert (delta.text, delta.ending.reason, one.stop) == ("a", FinishReason.LENGTH, None)


def test_a_stop_string_before_the_engines_end_counts_although_it_came_with_it():
    one = answer("b")
    delta = one.push(Piece(tokens=list(b"abcd"), finished=finished(FinishReason.LENGTH, 4, [])))
    assert delta.ending is not None
    assert (delta.text, delta.ending.reason, delta.ending.matched, one.num_tokens) == ("a", FinishReason.STOP, "b", 2)


@pytest.mark.parametrize(("keep_stop", "text"), [(False, "a"), (True, "ab")])
def test_a_stop_token_is_shown_only_when_asked(keep_stop, text):
    piece = Piece(tokens=list(b"ab"), finished=finished(FinishReason.STOP, 2, [], matched=ord("b")))
    delta = answer(keep_stop=keep_stop).push(piece)
    assert (delta.text, delta.tokens) == (text, list(b"ab"))


@pytest.mark.parametrize(("keep_stop", "text"), [(False, "a"), (True, "abc")])
def test_a_stop_string_is_shown_only_when_asked(keep_stop, text):
    assert answer("bc", keep_stop=keep_stop).push(Piece(tokens=list(b"abcd"))).text == text


def test_text_held_back_for_a_stop_string_appears_at_the_end():
    one = answer("xyz")
    assert one.push(Piece(tokens=list(b"wxy"))).text == "w"
    assert one.push(Piece(finished=finished(FinishReason.LENGTH, 3, []))).text == "xy"
