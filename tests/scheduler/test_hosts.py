"""Hosts of one engine, all in this process: they plan the same, whatever is asked of the first."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest
import zmq
from hypothesis import HealthCheck, given, settings

from configs.distributed import TICKS
from configs.schema import Distributed
from scheduler.assembly import assemble
from scheduler.commands import Shutdown
from scheduler.completions import Mailbox
from scheduler.hosts import ONE_HOST, Hosts, HostsError, LeadingHost, OpenPort, open_hosts
from scheduler.loop import run
from scheduler.observe import Event
from scheduler.planner import Plan
from scheduler.port import Port
from scheduler.start import host_id
from scheduler.tick import Tick
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.serving.process.service import free_ports
from tests.strategies import Workload, workloads

WAIT_S = 20.0


class Plans:
    """An observer that keeps them."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def observe(self, event: Event) -> None:
        if isinstance(event, Plan):
            self.seen.append(event.canonical())


@contextmanager
def meeting(num_hosts: int, port: int = 0) -> Iterator[list[Hosts]]:
    context: zmq.Context[zmq.SyncSocket] = zmq.Context()
    coordinator = f"127.0.0.1:{port or free_ports(3)}"
    hosts = [
        open_hosts(context, Distributed(hosts=num_hosts, rank=rank, coordinator=coordinator))
        for rank in range(num_hosts)
    ]
    try:
        yield hosts
    finally:
        for host in hosts:
            host.close()
        context.destroy(linger=0)


def together(hosts: list[Hosts], act: Callable[[Hosts, int], list[bytes]]) -> list[list[bytes]]:
    """What ``act(host, rank)`` gives on every host, each on its own thread."""
    results: dict[int, list[bytes]] = {}

    def one(rank: int) -> None:
        results[rank] = act(hosts[rank], rank)

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(len(hosts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    return [results[rank] for rank in range(len(hosts))]


def only(port: Port) -> OpenPort:
    return lambda mailbox: port


def test_every_host_is_told_what_all_of_them_said_again_and_again() -> None:
    with meeting(3) as hosts:
        for number in range(3):
            values = [b"%d of %d" % (rank, number) for rank in range(3)]
            assert together(hosts, lambda host, rank, values=values: host.exchange(values[rank])) == [values] * 3


def test_one_host_agrees_with_itself_and_keeps_its_port() -> None:
    port = ScriptedPort({})
    with zmq.Context() as context:
        assert open_hosts(context, Distributed()) is ONE_HOST
    assert ONE_HOST.exchange(b"mine") == [b"mine"]
    assert ONE_HOST.port(only(port))(Mailbox()) is port


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads())
def test_whatever_is_asked_of_host_0_all_hosts_plan_the_same(workload: Workload) -> None:
    # document: O-27
    script = {turn: list(commands) for turn, commands in workload.script.items()}
    script[10_000] = [(0, Shutdown())]

    def serve(host: Hosts, rank: int) -> list[bytes]:
        del rank
        host.exchange(b"ready")
        plans = Plans()
        port = host.port(only(ScriptedPort(script, numbers=itertools.count(1))))(Mailbox())
        run(assemble(port, KVEchoRunner(workload.shapes), workload.settings, (plans,)), workload.settings.depth)
        return plans.seen

    with meeting(2) as hosts:
        leader, follower = together(hosts, serve)
    assert follower == leader
    assert leader


def test_a_tick_that_was_lost_on_the_way_ends_the_host_that_lacks_it() -> None:
    with meeting(2) as hosts:
        together(hosts, lambda host, rank: host.exchange(b""))
        leader, follower = hosts
        assert isinstance(leader, LeadingHost)
        port = follower.port(only(ScriptedPort({})))(Mailbox())
        leader.broadcast(Tick(1, 5, []))
        assert port.poll() == Tick(1, 5, [])
        leader.broadcast(Tick(3, 7, []))
        with pytest.raises(HostsError, match="Tick 3 of host 0 arrived where 2 should have"):
            port.wait()


def test_host_0_does_not_go_on_without_a_host_that_is_gone() -> None:
    with meeting(2) as hosts:
        together(hosts, lambda host, rank: host.exchange(b""))
        leader, follower = hosts
        assert isinstance(leader, LeadingHost)
        follower.close()
        ticks = [Tick(number, 0, []) for number in range(1, 10_000)]
        with pytest.raises(HostsError, match="host-1 does not take its Ticks"):
            deque(map(leader.broadcast, ticks))


def test_strangers_are_not_counted_and_do_not_disturb() -> None:
    port = free_ports(3)
    with meeting(2, port) as hosts, zmq.Context() as context:
        for identity, frames in (
            (host_id(9), [msgspec.msgpack.encode((0, b"mine"))]),
            (b"stranger", [b""]),
            (b"other", [b"a", b"b"]),
        ):
            stranger = context.socket(zmq.DEALER)
            stranger.set(zmq.IDENTITY, identity)
            stranger.connect(f"tcp://127.0.0.1:{port + TICKS}")
            stranger.send_multipart(frames)
            stranger.close(linger=1000)
        assert together(hosts, lambda host, rank: host.exchange(b"%d" % rank)) == [[b"0", b"1"]] * 2
