"""The engine's end of the wire, driven by raw ZeroMQ peers."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.commands import (
    Abort,
    Batch,
    Command,
    Delta,
    Generate,
    Message,
    Progress,
    SamplingParams,
    Shutdown,
    StepStats,
)
from scheduler.start import Endpoints, frontend_id, frontend_index
from scheduler.zmq_channel import ZmqChannel

WAIT_S = 5.0


class Wire:
    """A channel and what surrounds it."""

    def __init__(self, directory: str) -> None:
        self.endpoints = Endpoints(directory)
        self.context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        self.stats = self.context.socket(zmq.PULL)
        self.stats.bind(self.endpoints.stats)
        self.channel = ZmqChannel(self.context, self.endpoints, replica=0)

    def peer(self, identity: bytes) -> "zmq.SyncSocket":
        socket = self.context.socket(zmq.DEALER)
        socket.set(zmq.IDENTITY, identity)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVTIMEO, round(WAIT_S * 1000))
        socket.connect(self.endpoints.engine(0))
        return socket

    def frontend(self, index: int) -> "zmq.SyncSocket":
        return self.peer(frontend_id(index))

    def commands(self, count: int) -> list[tuple[int, Command]]:
        found: list[tuple[int, Command]] = []
        deadline = time.monotonic() + WAIT_S
        while len(found) < count and time.monotonic() < deadline:
            found += self.channel.receive(0.2)
        return found

    def close(self) -> None:
        self.channel.close()
        self.context.destroy(linger=0)


@pytest.fixture
def wire() -> Iterator[Wire]:
    with tempfile.TemporaryDirectory(prefix="radjax-") as directory:
        wire = Wire(directory)
        yield wire
        wire.close()


def generate(rid: str) -> Generate:
    return Generate(rid=rid, prompt=[1, 2], params=SamplingParams(max_new_tokens=3))


def message(frame: bytes) -> Message:
    return msgspec.msgpack.decode(frame, type=Message)


def test_commands_arrive_in_order_with_the_frontend_that_sent_them(wire: Wire) -> None:
    for index in (0, 3):
        with wire.frontend(index) as frontend:
            sent = [generate("a"), Abort(rid="a"), generate("b")]
            for command in sent:
                frontend.send(msgspec.msgpack.encode(command))
            assert wire.commands(3) == [(index, command) for command in sent]


def test_an_answer_reaches_the_frontend_that_asked_and_no_other(wire: Wire) -> None:
    with wire.frontend(0) as first, wire.frontend(1) as second:
        for frontend, rid in ((first, "a"), (second, "b")):
            frontend.send(msgspec.msgpack.encode(generate(rid)))
        for origin, command in wire.commands(2):
            assert isinstance(command, Generate)
            wire.channel.send(origin, Batch(messages=[Delta(rid=command.rid, tokens=[7])]))
        for frontend, rid in ((first, "a"), (second, "b")):
            assert message(frontend.recv()) == Batch(messages=[Delta(rid=rid, tokens=[7])])
            assert not frontend.poll(50)


def test_a_frontend_that_comes_late_learns_the_newest_progress(wire: Wire) -> None:
    # document: O-11
    for done in (1, 2):
        wire.channel.broadcast(Progress(stage="weights", done=done, total=2))
    with wire.frontend(5) as late:
        late.send(b"")
        assert wire.channel.receive(WAIT_S) == []
        assert message(late.recv()) == Progress(stage="weights", done=2, total=2)


def test_nothing_is_ever_blocked_by_a_frontend_that_is_gone(wire: Wire) -> None:
    started = time.monotonic()
    for _ in range(1000):
        wire.channel.send(9, Batch(messages=[]))
    assert wire.channel.counts.undelivered == 1000
    assert time.monotonic() - started < WAIT_S


def test_a_frontend_that_does_not_read_loses_messages_beyond_the_bound_and_no_one_else_does(wire: Wire) -> None:
    with wire.frontend(0) as stalled, wire.frontend(1) as reader:
        for frontend in (stalled, reader):
            frontend.send(b"")
        wire.channel.receive(WAIT_S)
        wire.channel.receive(0.2)
        big = Batch(messages=[Delta(rid="x", tokens=list(range(1000)))])
        for _ in range(70_000):
            wire.channel.send(0, big)
            if wire.channel.counts.undelivered:
                break
        assert wire.channel.counts.undelivered > 0
        wire.channel.send(1, big)
        assert message(reader.recv()) == big


def test_an_idle_receive_blocks_without_using_the_processor_until_another_thread_wakes_it(wire: Wire) -> None:
    # document: M-17
    timer = threading.Timer(0.5, wire.channel.wake)
    used, started = time.thread_time(), time.monotonic()
    timer.start()
    assert wire.channel.receive(None) == []
    assert time.monotonic() - started >= 0.4
    assert time.thread_time() - used < 0.1
    timer.join()
    assert wire.channel.receive(0.0) == []


def test_a_flood_of_wake_ups_does_not_block_and_brings_no_command(wire: Wire) -> None:
    for _ in range(200_000):
        wire.channel.wake()
    assert wire.channel.receive(0.0) == []


LEAVES = st.none() | st.integers(-(2**63), 2**63) | st.text(max_size=8)
KEYS = st.sampled_from(["type", "rid", "prompt", "params"]) | st.text(max_size=4)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=10
)
FRAMES = st.binary(max_size=64) | VALUES.map(msgspec.msgpack.encode)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.lists(FRAMES, min_size=1, max_size=4),
    identity=st.sampled_from([b"frontend-1", b"frontend-x", b"frontend-01", b"stranger"]),
)
def test_random_frames_are_dropped_and_a_good_command_still_arrives(
    wire: Wire, frames: list[bytes], identity: bytes
) -> None:
    marker = os.urandom(8).hex()
    with wire.peer(identity) as stranger, wire.frontend(0) as good:
        stranger.send_multipart(frames)
        good.send(msgspec.msgpack.encode(Abort(rid=marker)))
        assert (0, Abort(rid=marker)) in wire.commands(1)


@given(st.integers(0, 9999))
def test_a_frontends_identity_tells_its_number(index: int) -> None:
    assert frontend_index(frontend_id(index)) == index


def test_figures_reach_the_collector(wire: Wire) -> None:
    figures = {field.name: 0 for field in msgspec.structs.fields(StepStats) if field.required}
    stats = msgspec.convert(figures, StepStats)
    wire.channel.report(stats)
    assert wire.stats.poll(round(WAIT_S * 1000))
    assert msgspec.msgpack.decode(wire.stats.recv(), type=StepStats) == stats


def test_a_command_in_a_message_of_several_frames_is_dropped_whole(wire: Wire) -> None:
    with wire.frontend(0) as frontend:
        frontend.send_multipart([msgspec.msgpack.encode(Abort(rid="a")), b"more"])
        frontend.send(msgspec.msgpack.encode(Abort(rid="b")))
        assert wire.commands(1) == [(0, Abort(rid="b"))]
    assert wire.channel.counts.undecodable == 1


def test_stop_from_another_thread_makes_a_blocked_receive_return_one_shutdown(wire: Wire) -> None:
    timer = threading.Timer(0.05, wire.channel.stop)
    timer.start()
    assert [command for _, command in wire.channel.receive(WAIT_S)] == [Shutdown()]
    timer.join()
    assert wire.channel.receive(0) == []
