"""The collector and the frontends' links, in one process over real sockets."""

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import zmq
import zmq.asyncio

from scheduler.commands import Abort, Batch, Delta, Progress
from scheduler.start import Endpoints
from scheduler.zmq_channel import ZmqChannel
from serving.collector import Collector
from serving.collector_link import CollectorLink
from serving.collector_wire import ReplicaLoad
from serving.engine_wire import EngineGone
from serving.link import Link
from serving.metrics import Metrics
from serving.protocol.collector import Health
from serving.vitals import STUCK_AFTER_S, Vitals
from tests.serving.process.figures import ready, request_stats, step_stats

WAIT_S = 10.0
NUM_FRONTENDS = 3


class House:
    """A collector that turns on its own thread."""

    def __init__(self, directory: str) -> None:
        self.endpoints = Endpoints(directory)
        self.context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        metrics = Metrics({"model_name": "m", "engine_type": "unified"})
        self.collector = Collector(self.context, self.endpoints, metrics, NUM_FRONTENDS)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._turn)
        self._thread.start()

    def _turn(self) -> None:
        poller = zmq.Poller()
        for socket in self.collector.sockets:
            poller.register(socket, zmq.POLLIN)
        while not self._over.is_set():
            poller.poll(50)
            self.collector.turn()
        self.collector.close()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self.context.destroy(linger=0)


@pytest.fixture
def house() -> Iterator[House]:
    with tempfile.TemporaryDirectory(prefix="radjax-") as directory:
        house = House(directory)
        yield house
        house.close()


class Ears:
    """A listener that remembers."""

    def __init__(self, news: list[Health]) -> None:
        self._news = news
        self.left: float | None = None

    def num_waiting(self) -> list[int]:
        return [0]

    def health_changed(self, health: Health) -> None:
        self._news.append(health)

    def loads_changed(self, loads: list[ReplicaLoad]) -> None:
        raise AssertionError("there is one replica")

    def leave(self, timeout_s: float) -> None:
        self.left = timeout_s


@asynccontextmanager
async def frontend(house: House, index: int, news: list[Health]) -> AsyncIterator[CollectorLink]:
    context = zmq.asyncio.Context()
    link = CollectorLink(context, house.endpoints, index)
    running = asyncio.create_task(link.run(Ears(news)))
    try:
        yield link
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        link.close()
        context.term()


async def until(holds: Callable[[], object]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(WAIT_S):
        while not holds():
            await asyncio.sleep(0.02)


def counter(text: bytes, name: str) -> float:
    """The sum of a metric's samples."""
    lines = [line for line in text.decode().splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_an_engine_that_died_leaves_no_gauge_even_when_it_is_heard_once_more(house: House) -> None:
    # document: P-5
    push = house.context.socket(zmq.PUSH)
    push.connect(house.endpoints.stats)

    def report(*values: msgspec.Struct) -> None:
        for value in values:
            push.send(msgspec.msgpack.encode(value))

    async def main() -> None:
        async with frontend(house, 0, []) as link:
            report(ready(), step_stats(num_running=2, retractions=1))
            async with asyncio.timeout(WAIT_S):
                while counter(await link.metrics(), "radjax_num_running_reqs") != 2:
                    await asyncio.sleep(0.02)
            house.collector.vitals.die("killed")
            report(step_stats(num_running=2, retractions=2))
            async with asyncio.timeout(WAIT_S):
                while counter(text := await link.metrics(), "radjax_num_retracted_requests_total") != 2:
                    await asyncio.sleep(0.02)
            assert "radjax_num_running_reqs" not in text.decode()
            assert counter(text, "radjax_serving") == 0

    asyncio.run(main())
    push.close()


def test_three_frontends_and_300_requests_give_the_true_sums_and_no_counter_ever_falls(house: House) -> None:
    async def serve(index: int) -> list[float]:
        seen: list[float] = []
        async with frontend(house, index, []) as link:
            for number in range(100):
                link.record(request_stats(frontend=index, prompt_tokens=number))
                if number % 6 == 0:
                    seen.append(counter(await link.metrics(), "radjax_num_requests_total"))
            async with asyncio.timeout(WAIT_S):
                while (text := await link.metrics()) and counter(text, "radjax_num_requests_total") < 300:
                    await asyncio.sleep(0.05)
            assert counter(text, "radjax_prompt_tokens_total") == 3 * sum(range(100))
            assert counter(text, "radjax_generation_tokens_total") == 600
            assert link.lost == 0
        return seen

    async def main() -> list[list[float]]:
        return list(await asyncio.gather(*map(serve, range(NUM_FRONTENDS))))

    for seen in asyncio.run(main()):
        assert seen == sorted(seen)


def test_loads_are_the_newest_step_in_routers_words(house: House) -> None:
    push = house.context.socket(zmq.PUSH)
    push.connect(house.endpoints.stats)
    figures = step_stats(num_running=2, num_queued=3, tokens_used=64, waiting_prompt_tokens=7, pending_prompt_tokens=9)

    async def main() -> None:
        async with frontend(house, 0, []) as link:
            [load] = await link.loads()
            assert (load.dp_rank, load.num_reqs, load.num_tokens) == (0, 0, 0)
            push.send(msgspec.msgpack.encode(figures))
            async with asyncio.timeout(WAIT_S):
                while not (load := (await link.loads())[0]).num_reqs:
                    await asyncio.sleep(0.02)
            assert (load.num_reqs, load.num_running_reqs, load.num_waiting_reqs) == (5, 2, 3)
            assert (load.num_tokens, load.num_pending_tokens) == (71, 9)

    asyncio.run(main())
    push.close()


def test_frontends_hear_of_every_change_of_health(house: House) -> None:
    async def main() -> None:
        news: list[Health] = []
        async with frontend(house, 1, news) as link:
            await until(lambda: news)
            assert (await link.health()).state == "starting"
            push = house.context.socket(zmq.PUSH)
            push.connect(house.endpoints.stats)
            push.send(msgspec.msgpack.encode(Progress(stage="weights", done=3, total=9)))
            await until(lambda: news[-1].stage == "weights")
            assert (news[-1].done, news[-1].total) == (3, 9)
            push.send(msgspec.msgpack.encode(ready()))
            await until(lambda: news[-1].state == "ready")
            assert (await link.health()).state == "ready"
            push.close()

    asyncio.run(main())


def test_a_frontend_that_comes_while_the_service_leaves_is_told_so(house: House) -> None:
    async def main() -> None:
        house.collector.leave(7.0)
        context, ears = zmq.asyncio.Context(), Ears([])
        link = CollectorLink(context, house.endpoints, 2)
        running = asyncio.create_task(link.run(ears))
        await until(lambda: ears.left == 7.0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        link.close()
        context.term()

    asyncio.run(main())


def test_random_frames_are_dropped_and_answers_still_come(house: House) -> None:
    strangers = [(zmq.PUSH, house.endpoints.stats), (zmq.DEALER, house.endpoints.collector)]
    for kind, address in strangers:
        with house.context.socket(kind) as stranger:
            stranger.set(zmq.LINGER, 1000)
            stranger.connect(address)
            for size in range(200):
                stranger.send_multipart([os.urandom(size)] * (1 + size % 3))

    async def main() -> None:
        async with frontend(house, 0, []) as link:
            await until(lambda: house.collector.undecodable >= 400)
            assert counter(await link.metrics(), "radjax_num_requests_total") == 0

    asyncio.run(main())


def test_an_engines_death_ends_a_pending_receive_after_what_had_arrived(house: House) -> None:
    channel = ZmqChannel(house.context, house.endpoints, replica=0)

    async def main() -> None:
        context = zmq.asyncio.Context()
        link = Link(context, house.endpoints, 2)
        await link.send(Abort(rid="x"))
        assert channel.receive(WAIT_S) == [(2, Abort(rid="x"))]
        sent = Batch(messages=[Delta(rid="x", tokens=[1])])
        channel.send(2, sent)
        assert await asyncio.wait_for(link.receive(), WAIT_S) == sent
        waiting = asyncio.create_task(link.receive())
        await asyncio.sleep(0.05)
        link.fail("killed")
        with pytest.raises(EngineGone, match="killed"):
            await asyncio.wait_for(waiting, WAIT_S)
        with pytest.raises(EngineGone):
            await link.send(Abort(rid="x"))
        link.close()
        context.term()

    asyncio.run(main())
    channel.close()


def test_a_cancelled_receive_is_cancelled_and_loses_no_message(house: House) -> None:
    channel = ZmqChannel(house.context, house.endpoints, replica=0)

    async def main() -> None:
        context = zmq.asyncio.Context()
        link = Link(context, house.endpoints, 0)
        await link.greet()
        waiting = asyncio.create_task(link.receive())
        channel.receive(WAIT_S)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        channel.broadcast(Progress(stage="s", done=1, total=1))
        assert await asyncio.wait_for(link.receive(), WAIT_S) == Progress(stage="s", done=1, total=1)
        link.close()
        context.term()

    asyncio.run(main())
    channel.close()


def test_an_engine_that_always_has_a_message_leaves_time_for_everything_else(house: House) -> None:
    channel = ZmqChannel(house.context, house.endpoints, replica=0)

    async def main() -> None:
        context = zmq.asyncio.Context()
        link = Link(context, house.endpoints, 0)
        await link.greet()
        assert channel.receive(WAIT_S) == []
        for _ in range(500):
            channel.send(0, Batch(messages=[]))
        await asyncio.sleep(0.2)  # all of them wait
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        for _ in range(500):
            await link.receive()
        counting.cancel()
        assert turns >= 20
        link.close()
        context.term()

    asyncio.run(main())
    channel.close()


def vitals_ready() -> Vitals:
    vitals = Vitals(0.0)
    vitals.ready(0, 0.0)
    return vitals


def test_health_is_stuck_only_while_something_waits_and_nothing_moves() -> None:
    vitals = vitals_ready()
    vitals.check(STUCK_AFTER_S * 10)
    assert vitals.health.state == "ready"
    now = STUCK_AFTER_S * 10
    vitals.step(step_stats(num_running=1), now)
    vitals.check(now + STUCK_AFTER_S - 1)
    assert vitals.health.state == "ready"
    vitals.check(now + STUCK_AFTER_S + 1)
    assert vitals.health.state == "stuck"
    vitals.step(step_stats(num_running=1), now + STUCK_AFTER_S + 2)
    assert vitals.health.state == "ready"


def test_an_engine_that_hangs_while_idle_is_found_by_the_frontends_waiting_requests() -> None:
    vitals = vitals_ready()
    later = STUCK_AFTER_S * 10
    vitals.beat(b"frontend-0", [1], later)
    vitals.check(later + 1)
    assert vitals.health.state == "ready"
    for second in range(1, int(STUCK_AFTER_S) + 2):
        vitals.beat(b"frontend-0", [1], later + second)
        vitals.check(later + second)
    assert vitals.health.state == "stuck"


def test_nothing_brings_a_dead_or_draining_service_back_to_ready() -> None:
    for end in (Vitals.drain, lambda vitals: vitals.die("gone")):
        vitals = vitals_ready()
        end(vitals)
        state = vitals.health.state
        vitals.ready(0, 1.0)
        vitals.progress(Progress(stage="s", done=0, total=0))
        vitals.step(step_stats(num_running=1), 1.0)
        vitals.check(1.0 + 2 * STUCK_AFTER_S)
        assert vitals.health.state == state
