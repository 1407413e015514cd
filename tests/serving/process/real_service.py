"""The whole service with a real engine, as an operator starts it."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2

from serving.launcher import ENGINE_MODULE
from tests.serving.process.service import Service, free_port, running

START_S = 300.0
"""A fresh machine compiles every program first."""


@contextlib.contextmanager
def launched(launch_file: Path, folder: Path, *settings: str, module: str = ENGINE_MODULE) -> Iterator[Service]:
    """A service that is ready. It must end well when it is told to, if the test has not ended it before."""
    with started(launch_file, folder, *settings, module=module) as service:
        _wait_ready(service)
        yield service
        if service.process.poll() is None:
            service.process.terminate()
            assert service.wait() == 0, service.said


@contextlib.contextmanager
def started(launch_file: Path, folder: Path, *settings: str, module: str = ENGINE_MODULE) -> Iterator[Service]:
    """A service that begins; nothing of it is left afterwards. ``module``: what its engine processes run."""
    port = free_port()
    command = [sys.executable, "-m", "serving", "serve", str(launch_file), "--port", str(port)]
    for setting in settings:
        command += ["--set", setting]
    if module != ENGINE_MODULE:
        overrides = [f"serving.port={port}", *settings]
        command = [sys.executable, "-m", "tests.serving.process.service", module, str(launch_file), *overrides]
    with running(command, folder, folder / "log", port) as service:
        yield service


def engine_pid(service: Service) -> int:
    """The process of the engine, among the launcher's children."""
    launcher = service.process.pid
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if b"scheduler.main" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError("the launcher has no engine")


def _wait_ready(service: Service) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert service.process.poll() is None, service.said
        with contextlib.suppress(httpx2.TransportError):
            if service.status("/readyz") == 200:
                return
        time.sleep(0.02)
    raise AssertionError(f"the service did not become ready: {service.said}")
