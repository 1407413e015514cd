"""The rim: the channel inside one process, and the port that makes Ticks."""

import threading
import time
from typing import get_args

import pytest
from msgspec import structs

from scheduler.assembly import assemble
from scheduler.commands import (
    Abort,
    Batch,
    Command,
    Finished,
    Generate,
    GetState,
    Message,
    Rejected,
    Reply,
    Shutdown,
)
from scheduler.completions import Mailbox, Saved
from scheduler.local_channel import MAX_COMMANDS, MAX_MESSAGES, ChannelFullError, LocalChannel
from scheduler.loop import run
from scheduler.port import ChannelPort
from scheduler.tick import Tick
from tests.fakes import FakeClock, KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, Watcher, ask


def test_what_a_client_sends_arrives_in_order_with_its_origin() -> None:
    # document: O-13
    channel = LocalChannel()
    one, two = channel.client(1), channel.client(2)
    one.send(Abort(rid="a"))
    two.send(Abort(rid="b"))
    assert channel.receive(0) == [(1, Abort(rid="a")), (2, Abort(rid="b"))]
    assert channel.receive(0) == []


def test_answers_reach_only_their_origin_and_broadcasts_reach_all() -> None:
    # document: O-13
    channel = LocalChannel()
    one, two = channel.client(1), channel.client(2)
    reply = Reply(call="x", success=True, message="")
    channel.send(1, reply)
    channel.send(3, reply)
    assert one.receive(0) == [reply]
    assert two.receive(0) == []
    channel.broadcast(reply)
    assert one.receive(0) == two.receive(0) == [reply]


def test_commands_have_a_bound() -> None:
    channel = LocalChannel()
    client = channel.client(0)
    for _ in range(MAX_COMMANDS):
        client.send(Abort(rid="a"))
    with pytest.raises(ChannelFullError):
        client.send(Abort(rid="a"))


def test_seeds_of_unseeded_requests_are_drawn_where_the_tick_is_made() -> None:
    channel = LocalChannel()
    client = channel.client(0)
    client.send(ask("a", [1], 1, seed=None))
    client.send(ask("b", [1], 1, seed=7))
    tick = ChannelPort(channel, FakeClock(), lambda: 123).poll()
    seeds = [command.params.seed for _, command in tick.commands if isinstance(command, Generate)]
    assert seeds == [123, 7]


class RestlessChannel:
    """Returns early with nothing a few times before it has a command."""

    def __init__(self, times: int) -> None:
        self._left = times

    def receive(self, timeout_s: float | None) -> list[tuple[int, Command]]:
        self._left -= 1
        return [(0, Shutdown())] if self._left < 0 else []

    def send(self, origin: int, message: Message) -> None:
        raise AssertionError("nothing is to be said")

    def broadcast(self, message: Message) -> None:
        raise AssertionError("nothing is to be said")

    def wake(self) -> None:
        raise AssertionError("nothing has been posted")


def test_a_channel_that_returns_early_with_nothing_is_asked_again_and_makes_no_turn() -> None:
    tick = ChannelPort(RestlessChannel(3), FakeClock(), lambda: 1).wait()
    assert (tick.number, tick.commands) == (1, [(0, Shutdown())])


def test_what_finishes_elsewhere_wakes_an_idle_engine_and_comes_with_the_next_tick() -> None:
    channel, mailbox = LocalChannel(), Mailbox()
    port = ChannelPort(channel, FakeClock(), lambda: 1, mailbox)
    threading.Timer(0.02, mailbox.post, [Saved(7)]).start()
    assert port.wait().completions == [Saved(7)]
    mailbox.post(Saved(8))
    mailbox.post(Saved(9))
    assert port.wait().completions == [Saved(8), Saved(9)]
    assert port.wait(0.001).completions == port.poll().completions == []


def turns_of(watcher: Watcher) -> int:
    return sum(isinstance(event, Tick) for event in watcher.events)


def test_an_idle_engine_blocks_until_a_command_comes_and_answers_it() -> None:
    # document: M-16, M-17
    channel, watcher = LocalChannel(), Watcher()
    client = channel.client(4)
    port = ChannelPort(channel, time.monotonic_ns, lambda: 1)
    engine = assemble(port, KVEchoRunner(SHAPES), SETTINGS, (watcher,))
    thread = threading.Thread(target=run, args=(engine, 1))
    thread.start()
    time.sleep(0.05)
    assert turns_of(watcher) == 0
    client.send(ask("a", [1, 2, 3], 3, stream=False))
    message = client.receive(5)[0]
    assert isinstance(message, Batch)
    finished = message.messages[0]
    assert isinstance(finished, Finished)
    assert len(finished.delta.tokens) == 3
    before = turns_of(watcher)
    time.sleep(0.05)
    assert turns_of(watcher) == before
    client.send(Shutdown())
    thread.join(5)
    assert not thread.is_alive()


def test_a_failing_handler_is_answered_to_its_sender_and_the_engine_lives() -> None:
    # document: O-14
    channel = LocalChannel()
    client = channel.client(0)
    port = ChannelPort(channel, FakeClock(), lambda: 1)
    engine = assemble(port, KVEchoRunner(SHAPES), SETTINGS, ())
    client.send(ask("bad", [-(2**40)], 1))
    client.send(ask("good", [1, 2], 1, stream=False))
    client.send(GetState(call="c"))
    engine.emit(engine.receive())
    batch, reply = sorted(client.receive(0), key=lambda message: isinstance(message, Reply))
    assert isinstance(batch, Batch)
    assert isinstance(reply, Reply)
    answer = batch.messages[0]
    assert isinstance(answer, Rejected)
    assert (answer.rid, answer.status, answer.code) == ("bad", 500, "internal_error")
    assert reply.state["num_waiting"] == 1


def test_a_client_that_takes_nothing_loses_its_own_messages_and_no_others() -> None:
    channel = LocalChannel()
    slow, other = channel.client(0), channel.client(1)
    reply = Reply(call="x", success=True, message="")
    for _ in range(MAX_MESSAGES + 1):
        channel.send(0, reply)
    channel.send(1, reply)
    assert other.receive(0) == [reply]
    with pytest.raises(ChannelFullError, match="lost"):
        slow.receive(0)


def test_a_question_that_fails_is_answered_as_failed() -> None:
    # document: O-14
    channel = LocalChannel()
    client = channel.client(0)
    port = ChannelPort(channel, FakeClock(), lambda: 1)
    engine = assemble(port, KVEchoRunner(SHAPES), structs.replace(SETTINGS, num_pages=0), ())
    client.send(GetState(call="c"))  # there is no share of no pages
    engine.emit(engine.receive())
    [reply] = client.receive(0)
    assert isinstance(reply, Reply)
    assert (reply.call, reply.success) == ("c", False)


def test_every_command_of_the_wire_has_a_handler() -> None:
    # document: O-12
    engine = assemble(ScriptedPort({}), KVEchoRunner(SHAPES), SETTINGS, ())
    assert set(engine.handlers) == set(get_args(Command))
