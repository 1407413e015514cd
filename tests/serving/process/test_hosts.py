"""One service on two hosts, with a stand-in for each engine: how it begins, drains, and ends with one of them."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serving.process.service import WAIT_S, Service, free_ports, serving

TIMEOUT_S = 2.0
GRACE_S = 4.0
"""For streams to end with an error and processes to go."""


@contextlib.contextmanager
def two_hosts(tmp_path: Path, *settings: str) -> Iterator[tuple[Service, Service]]:
    """Host 0 and host 1, which starts first."""
    both = (
        *("parallel.tensor=4", "distributed.hosts=2", f"distributed.coordinator=127.0.0.1:{free_ports(3)}"),
        *(f"distributed.timeout_s={TIMEOUT_S}", *settings),
    )
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
    with (
        serving(tmp_path / "1", *both, "distributed.rank=1") as other,
        serving(tmp_path / "0", *both) as first,
    ):
        yield first, other


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Service, Service]]:
    with two_hosts(tmp_path) as both:
        both[0].wait_for("/readyz", 200)
        yield both


def kill(service: Service) -> None:
    """All of a host at once: the launcher, then what the launcher would have ended."""
    service.process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.kill(service.engine_pid, signal.SIGKILL)


@pytest.mark.slow
def test_the_service_is_ready_when_both_hosts_are_and_host_1_has_no_port(hosts: tuple[Service, Service]) -> None:
    first, other = hosts
    assert first.generate([65, 66], 3).json()["output_ids"] == [65, 66, 65]
    until(lambda: "as host 1 of 2" in other.said)


@pytest.mark.slow
def test_a_host_can_be_stopped_while_it_waits_for_the_others(tmp_path: Path) -> None:
    alone = ("parallel.tensor=4", "distributed.hosts=4", f"distributed.coordinator=127.0.0.1:{free_ports(3)}")
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    with serving(tmp_path / "0", *alone) as first, serving(tmp_path / "1", *alone, "distributed.rank=1") as other:
        first.wait_for("/livez", 200)
        assert first.status("/readyz") == 503
        until(lambda: "host 1 is there" in first.said)
        first.signal(signal.SIGTERM)
        assert first.wait() == 0, first.said
        assert other.wait() == 1
        assert "error: host 0: host 0 was told to stop" in other.said


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_either_host_that_is_told_to_stop_drains_the_service(hosts: tuple[Service, Service], told: int) -> None:
    hosts[told].signal(signal.SIGTERM)
    assert [host.wait() for host in hosts] == [0, 0], hosts[0].said + hosts[1].said
    assert "draining" in hosts[0].said


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_is_killed_is_noticed_within_the_time_out(hosts: tuple[Service, Service], lost: int) -> None:
    killed_s = time.monotonic()
    kill(hosts[lost])
    left = hosts[1 - lost]
    assert left.wait() == 1
    assert time.monotonic() - killed_s < TIMEOUT_S + GRACE_S
    assert f"error: host {lost} is lost: nothing was heard of it for" in left.said


@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_engine_that_is_killed_ends_both_hosts_and_both_say_why(hosts: tuple[Service, Service], lost: int) -> None:
    os.kill(hosts[lost].engine_pid, signal.SIGKILL)
    assert [host.wait() for host in hosts] == [1, 1]
    assert "error: the engine process was killed by SIGKILL" in hosts[lost].said
    assert f"error: host {lost}: the engine process was killed by SIGKILL" in hosts[1 - lost].said


@pytest.mark.slow
def test_a_host_that_freezes_is_lost(hosts: tuple[Service, Service]) -> None:
    os.kill(hosts[1].process.pid, signal.SIGSTOP)
    assert hosts[0].wait() == 1
    assert "error: host 1 is lost" in hosts[0].said
