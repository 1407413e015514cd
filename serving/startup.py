"""What the operator sees on standard error while the service starts."""

import sys
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from scheduler.commands import Progress, Ready


class Display(Protocol):
    """Shows how far the start is."""

    def progress(self, progress: Progress) -> None:
        """One more step of one stage."""
        ...

    def ready(self, ready: Ready, url: str) -> None:
        """The service answers at ``url``."""
        ...

    def close(self) -> None:
        """Give the terminal back; may be called twice."""
        ...


class PlainDisplay:
    """A line when a stage begins and when it ends: for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stages: set[str] = set()

    def progress(self, progress: Progress) -> None:
        """A line for a new stage and for its end."""
        if progress.stage in self._stages and progress.done < progress.total:
            return
        self._stages.add(progress.stage)
        count = f" {progress.done}/{progress.total}" if progress.total else ""
        detail = f" ({progress.detail})" if progress.detail else ""
        self._line(f"{progress.stage}{count}{detail}")

    def ready(self, ready: Ready, url: str) -> None:
        """The banner and the address."""
        for line in ready.banner:
            self._line(line)
        self._line(f"ready: {ready.served_name} at {url}")

    def close(self) -> None:
        """Nothing to give back."""

    def _line(self, text: str) -> None:
        print(f"radjax: {text}", file=self._stream, flush=True)


class BarDisplay:
    """A bar a stage: for terminals."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._bars.start()

    def progress(self, progress: Progress) -> None:
        """Move the stage's bar."""
        if progress.stage not in self._tasks:
            self._tasks[progress.stage] = self._bars.add_task(progress.stage, detail="")
        total = progress.total or None
        self._bars.update(
            self._tasks[progress.stage], completed=progress.done, total=total, detail=progress.detail[:60]
        )

    def ready(self, ready: Ready, url: str) -> None:
        """The banner and the address."""
        self.close()
        for line in ready.banner:
            self._console.print(line, markup=False)
        self._console.print(f"[bold green]ready[/]: {ready.served_name} at [bold]{url}[/]")

    def close(self) -> None:
        """Leave the bars as they stand."""
        self._bars.stop()


def display() -> Display:
    """Bars when standard error is a terminal, lines otherwise."""
    return BarDisplay() if sys.stderr.isatty() else PlainDisplay(sys.stderr)
