"""Launchers of several hosts: how they meet, notice each other's end, and find out that they plan differently."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from configs.schema import Cache, Distributed, EngineConfig, Model, Parallel
from scheduler.commands import PlanMade
from scheduler.start import Endpoints
from serving.host_link import HostLink
from serving.plan_check import Comparison, Digest, PlanLog, digest, readable
from tests.serving.process.service import free_ports

TIMEOUT_S = 6.0
TURNS = 2000
PAUSE_S = 0.002


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Host:
    """A launcher's link and a socket in the place of its engine."""

    def __init__(
        self, context: "zmq.Context[zmq.SyncSocket]", config: EngineConfig, folder: Path, clock: Clock
    ) -> None:
        folder.mkdir(exist_ok=True)
        endpoints = Endpoints(str(folder))
        self.link = HostLink(context, endpoints, config, clock)
        self.engine = context.socket(zmq.PUSH)
        self.engine.connect(endpoints.plans)
        self._numbers = itertools.count(1)

    def plan(self, *plans: bytes) -> None:
        for plan in plans:
            self.engine.send(msgspec.msgpack.encode(PlanMade(next(self._numbers), plan)))

    def close(self) -> None:
        self.engine.close(linger=0)
        self.link.close()


class Meeting:
    """Hosts on one clock."""

    def __init__(self, folder: Path, num_hosts: int) -> None:
        self.folder = folder
        self.clock = Clock()
        self.context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        self.config = EngineConfig(
            model=Model(source="here"),
            parallel=Parallel(tensor=num_hosts),
            distributed=Distributed(
                hosts=num_hosts, coordinator=f"127.0.0.1:{free_ports(3)}", timeout_s=TIMEOUT_S, check_plans=4
            ),
        )
        self.hosts: dict[int, Host] = {}

    def come(self, rank: int, config: EngineConfig | None = None) -> Host:
        config = config or self.config
        config = structs.replace(config, distributed=structs.replace(config.distributed, rank=rank))
        self.hosts[rank] = Host(self.context, config, self.folder / str(rank), self.clock)
        return self.hosts[rank]

    def all_come(self) -> None:
        for rank in range(self.config.distributed.hosts):
            self.come(rank)
        self.turn(lambda: all(host.link.met for host in self.hosts.values()))

    def turn(self, until: Callable[[], bool], step_s: float = 0.0) -> None:
        """Turn every link until something holds; the clock goes on by ``step_s`` a round."""
        for _ in range(TURNS):
            for host in self.hosts.values():
                host.link.turn()
            if until():
                return
            self.clock.now_s += step_s
            time.sleep(PAUSE_S)
        raise AssertionError({rank: host.link.fault for rank, host in self.hosts.items()})

    def go_on(self, rounds: int, step_s: float) -> None:
        """Let time pass."""
        end_s = self.clock.now_s + rounds * step_s
        self.turn(lambda: self.clock.now_s >= end_s - step_s / 2, step_s)

    def close(self) -> None:
        for host in self.hosts.values():
            host.close()
        self.context.destroy(linger=0)


@pytest.fixture
def two() -> Iterator[Meeting]:
    yield from meeting(2)


@pytest.fixture
def three() -> Iterator[Meeting]:
    yield from meeting(3)


def meeting(num_hosts: int) -> Iterator[Meeting]:
    with tempfile.TemporaryDirectory(prefix="radjax-") as folder:
        found = Meeting(Path(folder), num_hosts)
        yield found
        found.close()


def fault(host: Host) -> str:
    assert host.link.fault is not None
    return host.link.fault


def test_the_hosts_begin_when_the_last_of_them_is_there(three: Meeting) -> None:
    three.come(2)
    three.come(0)
    three.go_on(20, 1.0)
    assert not any(host.link.met for host in three.hosts.values())
    three.come(1)
    three.turn(lambda: all(host.link.met for host in three.hosts.values()))


def test_hosts_that_live_hear_so_for_ever(two: Meeting) -> None:
    two.all_come()
    two.go_on(100, TIMEOUT_S / 10)
    assert [host.link.fault for host in two.hosts.values()] == [None, None]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_falls_silent_is_lost_after_the_time_out_and_not_before(two: Meeting, lost: int) -> None:
    two.all_come()
    two.hosts.pop(lost).close()
    [left] = two.hosts.values()
    began_s = two.clock.now_s
    two.turn(lambda: left.link.fault is not None, 0.5)
    assert TIMEOUT_S <= two.clock.now_s - began_s <= TIMEOUT_S + 2.0
    assert f"host {lost} is lost" in fault(left)
    assert "distributed.timeout_s is 6" in fault(left)


def test_why_a_host_dies_is_told_to_the_others_at_once(two: Meeting) -> None:
    two.all_come()
    assert not two.hosts[0].link.settled(two.clock.now_s)
    two.hosts[1].link.die("the engine process was killed by SIGKILL")
    two.turn(lambda: two.hosts[0].link.fault is not None)
    assert fault(two.hosts[0]) == "host 1: the engine process was killed by SIGKILL"
    assert two.hosts[0].link.settled(two.clock.now_s)


def test_a_host_that_begins_anew_ends_the_service(two: Meeting) -> None:
    two.all_come()
    two.hosts.pop(1).close()
    two.go_on(100, 0.01)  # until its connection is gone
    two.come(1)
    two.turn(lambda: two.hosts[0].link.fault is not None)
    assert fault(two.hosts[0]) == "host 1 has begun anew"


def test_a_death_before_the_hosts_have_met_has_nothing_to_do_with_them(two: Meeting) -> None:
    assert two.come(0).link.settled(two.clock.now_s)


def test_a_death_here_is_settled_when_the_others_are_heard_later(two: Meeting) -> None:
    two.all_come()
    died_s = two.clock.now_s
    two.turn(lambda: two.hosts[0].link.settled(died_s), 0.25)
    assert 1.0 < two.clock.now_s - died_s < TIMEOUT_S
    assert two.hosts[0].link.fault is None


def test_a_host_that_is_told_to_stop_asks_host_0_to(two: Meeting) -> None:
    two.all_come()
    two.hosts[1].link.leave()
    two.turn(lambda: two.hosts[0].link.leaving)
    assert two.hosts[0].link.fault is None


@pytest.mark.parametrize("rank", [0, 1])
def test_who_waits_in_vain_for_the_others_says_for_whom(two: Meeting, rank: int) -> None:
    alone = two.come(rank)
    two.turn(lambda: alone.link.fault is not None, 60.0)
    assert ("these did not come in time: 1" if rank == 0 else "host 0 did not answer at 127.0.0.1:") in fault(alone)


def test_a_host_with_another_launch_file_is_told_which_key_differs(two: Meeting) -> None:
    two.come(0)
    other = two.come(1, structs.replace(two.config, cache=Cache(page_size=32)))
    two.turn(lambda: other.link.fault is not None)
    assert "cache.page_size is auto on host 0 and 32 there" in fault(other)
    assert two.hosts[0].link.fault is None
    assert not two.hosts[0].link.met
    two.hosts.pop(1).close()


def test_equal_plans_are_compared_and_nothing_happens(two: Meeting) -> None:
    two.all_come()
    for _ in range(30):
        for host in two.hosts.values():
            host.plan(b"\x93\x01\x02\x03")
        two.go_on(1, 0.1)
    assert [host.link.fault for host in two.hosts.values()] == [None, None]


def test_a_plan_that_differs_ends_both_hosts_with_both_plans_in_the_log(
    two: Meeting, caplog: pytest.LogCaptureFixture
) -> None:
    two.all_come()
    same = msgspec.msgpack.encode(["decode", 2, [7, 8]])
    here, there = (msgspec.msgpack.encode(["mixed", 64, [rows]]) for rows in (41, 42))
    two.hosts[0].plan(same, here, same)
    two.hosts[1].plan(same, there, same)
    two.turn(lambda: all(host.link.fault is not None for host in two.hosts.values()), 0.1)
    assert fault(two.hosts[0]) == "plan 2 differs between host 0 and host 1; the log has both"
    assert fault(two.hosts[1]) == "plan 2 differs between host 1 and host 0; the log has both"
    both = [record.getMessage() for record in caplog.records if "differs between" in record.getMessage()]
    assert len(both) == 2
    for line in both:
        assert 'host 0: family="mixed" size=64 decode=[41]' in line
        assert 'host 1: family="mixed" size=64 decode=[42]' in line


def test_what_is_no_word_or_comes_from_a_stranger_is_not_heard(two: Meeting) -> None:
    two.all_come()
    port = int((two.config.distributed.coordinator or "").rpartition(":")[2]) + 2
    for identity in (b"host-9", b"stranger", b"host-01"):
        socket = two.context.socket(zmq.DEALER)
        socket.set(zmq.IDENTITY, identity)
        socket.connect(f"tcp://127.0.0.1:{port}")
        socket.send(msgspec.msgpack.encode({"type": "dying", "reason": "I say so"}))
        socket.send_multipart([b"", b"\xc1", b""])
        socket.close(linger=1000)
    two.go_on(20, 0.1)
    assert [host.link.fault for host in two.hosts.values()] == [None, None]


PLANS = st.lists(st.binary(min_size=1, max_size=3), max_size=40)


@given(PLANS, PLANS, st.randoms(use_true_random=False))
def test_the_first_difference_is_found_however_late_either_side_is(
    mine: list[bytes], theirs: list[bytes], chance: Random
) -> None:
    log = PlanLog()
    comparison = Comparison(log)
    made, told, found = 0, 0, None
    while found is None and (made < len(mine) or told < len(theirs)):
        if told == len(theirs) or (made < len(mine) and chance.random() < 0.5):
            made += 1
            log.note(PlanMade(made, mine[made - 1]))
        else:
            told += 1
            comparison.heard(1, [Digest(told, digest(theirs[told - 1]))])
        found = comparison.difference()
    pairs = enumerate(zip(mine, theirs, strict=False), 1)
    first = next((number for number, (ours, other) in pairs if ours != other), None)
    assert found == (None if first is None else (1, first))


def test_a_plan_is_readable_and_a_forgotten_one_is_said_to_be() -> None:
    plan = msgspec.msgpack.encode(["mixed", 64, [], [(3, 0, 16, False)]])
    assert readable(plan) == 'family="mixed" size=64 pieces=[[3,0,16,false]]'
    assert readable(None) == "kept no longer"
