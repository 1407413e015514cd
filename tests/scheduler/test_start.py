"""How a child process is told what it is."""

import io
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import EngineConfig, Model
from scheduler.start import ORPHANED, Endpoints, EngineStart, frontend_id, frontend_index, read_start, write_start

START = EngineStart(config=EngineConfig(model=Model(source="x")), name="x", endpoints=Endpoints("/nowhere"), replica=3)


def written() -> bytes:
    stream = io.BytesIO()
    write_start(stream, START)
    return stream.getvalue()


def test_what_is_written_is_read_and_what_follows_is_left_in_the_pipe() -> None:
    stream = io.BytesIO(written() + b"rest")
    assert read_start(stream, EngineStart) == START
    assert stream.read() == b"rest"


@pytest.mark.parametrize("length", [0, 3, 4, 20])
def test_a_parent_that_goes_away_early_is_noticed(length: int) -> None:
    with pytest.raises(EOFError, match="before the start message was complete"):
        read_start(io.BytesIO(written()[:length]), EngineStart)


def test_a_start_message_that_is_too_long_is_not_read() -> None:
    with pytest.raises(ValueError, match="at most 1048576"):
        read_start(io.BytesIO(b"\xff\xff\xff\xff" + written()), EngineStart)


@given(index=st.integers(0, 9999), noise=st.binary(max_size=20))
def test_only_the_identity_of_a_frontend_is_read_as_its_number(index: int, noise: bytes) -> None:
    assert frontend_index(frontend_id(index)) == index
    named = frontend_index(b"frontend-" + noise)
    assert named is None or frontend_id(named) == b"frontend-" + noise
    assert frontend_index(noise) is None


def test_endpoints_of_replicas_and_of_purposes_all_differ() -> None:
    endpoints = Endpoints("/tmp/x")
    engines = {endpoints.engine(0), endpoints.engine(1), endpoints.engine(0, life=1)}
    assert len({*engines, endpoints.stats, endpoints.collector}) == 5


def test_a_child_leaves_at_once_when_its_parent_has_gone() -> None:
    code = "import sys, time; from scheduler.start import exit_with_parent; exit_with_parent(sys.stdin.buffer)"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(1, flush=True); time.sleep(60)"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"1\n"
        time.sleep(0.05)
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(30) == ORPHANED
