"""Where requests go: the decisions alone, and what a frontend remembers for them."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import Parallel, Placement
from scheduler.commands import Abort, Batch, Generate, Recall, Rejected, SamplingParams
from serving.call import Call
from serving.collector_wire import ReplicaLoad
from serving.engine_client import EngineClient
from serving.placement import Standing, place, shift
from serving.prefixes import MAX_PROMPT_PAGES, Prefixes, page_hashes
from serving.protocol.errors import RequestError
from tests.serving.fakes import FakeEngine, Sink
from tests.serving.process.figures import ready

RULES: tuple[Placement, ...] = ("auto", "round_robin", "shortest_queue", "fewest_tokens", "prefix")
PAGE = 16
standings = st.lists(
    st.builds(
        Standing,
        serving=st.booleans(),
        requests=st.integers(0, 6),
        tokens=st.integers(0, 6),
        matched=st.integers(0, 3),
    ),
    min_size=1,
    max_size=5,
)


def ask(rid: str, prompt: list[int], **more: Any) -> Generate:
    return Generate(rid=rid, prompt=prompt, params=SamplingParams(max_new_tokens=4), **more)


@given(standings, st.sampled_from(RULES), st.integers(0, 1000), st.integers(0, 4))
def test_a_request_goes_to_a_replica_that_serves_and_nowhere_when_none_does(found, rule, turn, slack):
    chosen = place(found, rule, turn, slack)
    assert found[chosen].serving if chosen is not None else not any(one.serving for one in found)


@given(st.lists(st.booleans(), min_size=1, max_size=6).filter(any), st.integers(0, 100), st.integers(1, 5))
def test_round_robin_gives_each_that_serves_equally_many(serving, first, rounds):
    found, live = [Standing(serving=one) for one in serving], sum(serving)
    counts = Counter(place(found, "round_robin", turn, 0) for turn in range(first, first + rounds * live))
    assert set(counts.values()) == {rounds}
    assert len(counts) == live


@given(standings, st.integers(0, 1000))
def test_the_shortest_queue_and_the_fewest_tokens_are_minima(found, turn):
    live = [one for one in found if one.serving]
    shortest, fewest = place(found, "shortest_queue", turn, 0), place(found, "fewest_tokens", turn, 0)
    if shortest is not None and fewest is not None:
        assert found[shortest].requests == min(one.requests for one in live)
        assert found[fewest].tokens == min(one.tokens for one in live)


@given(standings, st.integers(0, 1000), st.integers(0, 4))
def test_the_longest_prefix_wins_unless_its_replica_is_too_far_ahead_of_the_least_busy(found, turn, slack):
    chosen = place(found, "prefix", turn, slack)
    if chosen is None:
        return
    live = [one for one in found if one.serving]
    least, longest = min(one.requests for one in live), max(one.matched for one in live)
    holders = [one for one in live if one.matched == longest]
    if longest and min(one.requests for one in holders) <= least + slack:
        assert found[chosen].matched == longest
        assert found[chosen].requests == min(one.requests for one in holders)
    else:
        assert found[chosen].requests == least


@given(
    st.lists(st.builds(Standing, serving=st.booleans(), requests=st.integers(0, 9), waiting=st.integers(0, 9))),
    st.integers(0, 4),
)
def test_waiting_requests_move_from_the_longest_queue_to_none_and_never_more_than_half_the_difference(found, slack):
    moved = shift(found, slack)
    idle = [one for one in found if one.serving and not one.waiting]
    if moved is None:
        return
    giver, count = found[moved[0]], moved[1]
    assert giver.serving
    assert giver.waiting == max(one.waiting for one in found if one.serving)
    least = min(one.requests for one in idle)
    assert 0 < count <= giver.waiting
    assert giver.requests - least > slack
    assert giver.requests - count >= least + count


def test_a_queue_moves_to_an_idle_replica_and_not_to_one_that_has_its_own():
    queue = Standing(serving=True, requests=9, waiting=8)
    assert shift([queue, Standing(serving=True)], 2) == (0, 4)
    assert shift([queue, Standing(serving=True, requests=2, waiting=1)], 2) is None
    assert shift([queue, Standing(serving=False)], 2) is None


def test_idle_replicas_take_turns():
    found = [Standing(serving=True)] * 3
    for rule in RULES:
        assert {place(found, rule, turn, 8) for turn in range(3)} == {0, 1, 2}


@given(st.lists(st.integers(0, 1), min_size=1, max_size=70), st.lists(st.integers(0, 1), min_size=1, max_size=70))
def test_the_remembered_prefix_is_the_longest_common_one_in_whole_pages(sent, asked):
    prefixes = Prefixes(1000)
    prefixes.sent(page_hashes(ask("a", sent), PAGE))
    common = next((at for at, (one, other) in enumerate(zip(sent, asked, strict=False)) if one != other), None)
    common = min(len(sent), len(asked)) if common is None else common
    within = min(common, len(sent) - 1, len(asked) - 1)
    assert prefixes.longest(page_hashes(ask("b", asked), PAGE)) == within // PAGE


@pytest.mark.parametrize("more", [{"extra_key": "x"}, {"cache_salt": "x"}, {"adapter": "x"}])
def test_prefixes_of_another_namespace_do_not_count(more):
    prefixes = Prefixes(1000)
    prefixes.sent(page_hashes(ask("a", [1] * 40), PAGE))
    assert prefixes.longest(page_hashes(ask("b", [1] * 40), PAGE)) == 2
    assert prefixes.longest(page_hashes(ask("b", [1] * 40, **more), PAGE)) == 0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 12))
def test_the_memory_of_prefixes_is_bounded_and_keeps_beginnings_longest(lengths, capacity):
    prefixes = Prefixes(capacity)
    for number, pages in enumerate(lengths):
        hashes = page_hashes(ask("a", [number] * (pages * PAGE + 1)), PAGE)
        assert len(hashes) == pages
        prefixes.sent(hashes)
        assert len(prefixes) <= capacity
        assert prefixes.longest(hashes) == min(pages, capacity)
    prefixes.forget()
    assert len(prefixes) == 0


def test_a_very_long_prompt_is_placed_by_its_beginning():
    assert len(page_hashes(ask("a", [1] * PAGE * (MAX_PROMPT_PAGES + 50)), PAGE)) == MAX_PROMPT_PAGES


class Pair:
    """A client of two scripted engines that are ready."""

    def __init__(self, placement: Placement = "auto", slack: int = 8, pace_s: float = 0.0) -> None:
        self.engines = [FakeEngine(lambda request: [7] * 4, pace_s) for _ in range(2)]
        self.sink = Sink()
        parallel = Parallel(replicas=2, placement=placement, placement_slack=slack)
        self.client = EngineClient(self.engines, frontend=0, stats=self.sink, parallel=parallel)

    async def __aenter__(self) -> "Pair":
        self._reading = asyncio.create_task(self.client.run())
        for engine in self.engines:
            engine.say(ready())
        await self.client.wait_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def placed(self, request: Generate) -> int:
        """Which engine a request goes to."""
        before = [engine.count(Generate) for engine in self.engines]
        await self.client.open([request], "/x")
        [chosen] = [index for index, engine in enumerate(self.engines) if engine.count(Generate) > before[index]]
        return chosen


async def whole(call: Call) -> None:
    """Take all of a call."""
    while call.remaining:
        await call.take(5)


def test_turns_of_a_conversation_go_where_the_first_went():
    async def scenario() -> None:
        async with Pair() as pair:
            talks = [[number] * 40 for number in range(6)]
            homes = [await pair.placed(ask(f"{number}", talk)) for number, talk in enumerate(talks)]
            assert Counter(homes) == {0: 3, 1: 3}
            for turn in range(1, 3):
                for number, talk in enumerate(talks):
                    longer = talk + [99] * 20 * turn
                    assert await pair.placed(ask(f"{number}-{turn}", longer)) == homes[number]

    asyncio.run(scenario())


def test_a_shared_prompt_spreads_once_its_replica_is_too_busy():
    async def scenario() -> None:
        async with Pair(slack=2) as pair:
            homes = [await pair.placed(ask(f"{number}", [5] * 40 + [number])) for number in range(8)]
            assert homes[:3] == [homes[0]] * 3
            assert Counter(homes) == {0: 4, 1: 4}

    asyncio.run(scenario())


def test_a_flushed_cache_is_no_reason_to_go_there():
    async def scenario() -> None:
        async with Pair() as pair:
            home = await pair.placed(ask("a", [5] * 40))
            pair.client.heard([ReplicaLoad(home, 2**62, 1, 0, 40), ReplicaLoad(1 - home, 2**62)])
            assert await pair.placed(ask("b", [5] * 40)) == home
            assert all(reply.success for reply in await pair.client.flush_cache())
            assert await pair.placed(ask("c", [5] * 40)) == 1 - home

    asyncio.run(scenario())


def test_a_report_tells_of_the_requests_of_others_and_counts_none_twice():
    async def scenario() -> None:
        async with Pair("shortest_queue", pace_s=60) as pair:
            assert [await pair.placed(ask(f"a{number}", [1])) for number in range(4)] == [0, 1, 0, 1]
            pair.client.heard([ReplicaLoad(0, 2**62, 5, 0, 5), ReplicaLoad(1, 2**62, 2, 0, 2)])
            assert [await pair.placed(ask(f"b{number}", [1])) for number in range(3)] == [1, 1, 1]
            pair.client.heard([ReplicaLoad(0, 2**62, 2, 0, 2), ReplicaLoad(1, 1, 99, 0, 99)])  # of a life before
            assert [await pair.placed(ask(f"c{number}", [1])) for number in range(3)] == [0, 0, 0]

    asyncio.run(scenario())


def test_a_request_that_has_ended_counts_no_more_though_no_report_says_so():
    async def scenario() -> None:
        async with Pair("shortest_queue") as pair:
            pair.engines[1].pace_s = 60
            assert await pair.placed(ask("a", [1])) == 0
            assert await pair.placed(ask("b", [1])) == 1
            for number in range(4):
                while pair.client.num_open > 1:
                    await asyncio.sleep(0.001)
                assert await pair.placed(ask(f"c{number}", [1])) == 0

    asyncio.run(scenario())


def test_a_replica_that_is_thought_stuck_gets_nothing_new():
    async def scenario() -> None:
        async with Pair("round_robin") as pair:
            pair.client.suspect(frozenset({0}))
            assert [await pair.placed(ask(f"{number}", [1])) for number in range(3)] == [1, 1, 1]
            pair.client.suspect(frozenset())
            assert {await pair.placed(ask(f"x{number}", [1])) for number in range(2)} == {0, 1}

    asyncio.run(scenario())


def test_what_a_lost_replica_had_begun_ends_with_an_error_and_the_rest_moves_once():
    async def scenario() -> None:
        async with Pair("round_robin", pace_s=0.05) as pair:
            begun = await pair.client.open([ask("begun", [1])], "/x")
            pair.client.suspect(frozenset({1}))
            while not (await begun.take(1))[0].tokens:
                pass
            quiet = await pair.client.open([ask("quiet", [1])], "/x")
            await pair.client.open([ask("left", [1])], "/x")
            pair.client.abandon([ask("left", [1])])
            pair.client.suspect(frozenset())
            pair.engines[0].die()
            await asyncio.sleep(0.01)
            assert pair.engines[1].count(Generate) == 1
            assert pair.client.num_open == 1
            with pytest.raises(RequestError, match="engine stopped"):
                await whole(begun)
            again = FakeEngine(lambda request: [7] * 4)
            pair.client.join(0, again, 1)
            again.say(ready())
            await asyncio.sleep(0.01)
            pair.engines[1].die()
            with pytest.raises(RequestError, match="engine stopped"):
                await whole(quiet)
            assert (again.count(Generate), pair.client.num_open) == (0, 0)
            again.die()
            await asyncio.sleep(0.01)
            late = await pair.client.open([ask("late", [1])], "/x")
            with pytest.raises(RequestError, match="No engine serves now"):
                await whole(late)

    asyncio.run(scenario())


def test_a_replica_that_joins_again_is_asked_and_its_life_before_is_not_heard():
    async def scenario() -> None:
        async with Pair("round_robin", pace_s=60) as pair:
            old, new = pair.engines[1], FakeEngine(lambda request: [8] * 4)
            assert [await pair.placed(ask(rid, [1])) for rid in "ab"] == [0, 1]
            pair.client.join(1, new, 1)
            await asyncio.sleep(0.01)
            assert pair.engines[0].count(Generate) == 2  # the second has moved
            old.say(Batch(messages=[Rejected(rid="b", status=400, code="invalid_request", message="of a former life")]))
            new.say(ready())
            await asyncio.sleep(0.01)
            assert pair.client.num_open == 2
            pair.engines[1] = new
            assert {await pair.placed(ask(rid, [1])) for rid in "cd"} == {0, 1}

    asyncio.run(scenario())


def test_a_recalled_request_goes_to_the_other_replica_once():
    async def scenario() -> None:
        async with Pair("round_robin", slack=2, pace_s=60) as pair:
            pair.client.suspect(frozenset({1}))
            for number in range(6):
                await pair.client.open([ask(f"{number}", [1])], "/x")
            pair.client.suspect(frozenset())
            pair.client.heard([ReplicaLoad(0, 2**62, 6, 5), ReplicaLoad(1, 2**62)])
            await asyncio.sleep(0.01)
            recalled = [command.rid for command in pair.engines[0].heard if isinstance(command, Recall)]
            assert recalled == ["5", "4", "3"]
            back = [Rejected(rid=rid, status=503, code="recalled", message="") for rid in recalled]
            pair.engines[0].say(Batch(messages=[*back]))
            await asyncio.sleep(0.01)
            assert pair.engines[1].count(Generate) == 3
            assert pair.client.num_open == 6
            assert pair.client.open_by_replica() == [3, 3]

    asyncio.run(scenario())


def test_control_goes_to_all_that_serve_and_a_replica_that_dies_meanwhile_is_a_failure_of_its_own():
    async def scenario() -> None:
        async with Pair() as pair:
            await pair.client.abort("x")
            assert [engine.count(Abort) for engine in pair.engines] == [1, 1]
            replies = await pair.client.state()
            assert [(reply.replica, reply.success) for reply in replies] == [(0, True), (1, True)]
            pair.engines[1].deaf = True
            asking = asyncio.create_task(pair.client.state())
            await asyncio.sleep(0.01)
            pair.engines[1].die()
            replies = await asking
            assert [(reply.replica, reply.success) for reply in replies] == [(0, True), (1, False)]
            assert "Replica 1 stopped" in replies[1].message
            assert [reply.replica for reply in await pair.client.state()] == [0]

    asyncio.run(scenario())
