"""Child processes: started with one struct on a pipe, watched, ended."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec import Struct

from scheduler.start import write_start


@dataclass(slots=True, frozen=True)
class Child:
    """One process and its name for people."""

    name: str
    process: subprocess.Popen[bytes]

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Its exit code; negative is the signal that killed it; None while it runs."""
        return self.process.poll()

    @property
    def last_words(self) -> str:
        """How it ended, as a clause: for ``"{name} …"``."""
        code = self.process.poll()
        if code is None:
            return "still runs"
        if code < 0:
            hint = "; was the machine out of memory?" if code == -signal.SIGKILL else ""
            return f"was killed by {signal.Signals(-code).name}{hint}"
        return f"exited with code {code}"

    def terminate(self) -> None:
        """Ask it to go (SIGTERM). Nothing happens when it has gone already."""
        self.process.terminate()

    def kill(self) -> None:
        """End it (SIGKILL) and wait for that."""
        self.process.kill()
        self.process.wait()


def spawn(
    name: str,
    module: str,
    start: Struct,
    inherited: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Start ``python -m module`` with ``start`` on its standard input and the descriptors ``inherited``.

    Its variables are ``environment``, or this process's own. It has its own session: Ctrl-C in the terminal reaches the
    launcher alone, which decides.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        pass_fds=inherited,
        start_new_session=True,
        env=environment,
    )
    assert process.stdin is not None, "a pipe was asked for"
    write_start(process.stdin, start)
    return Child(name, process)
