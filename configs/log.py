"""Logging of every process: lines of text for people, or one JSON object a line for machines."""

import logging
import sys
from datetime import UTC, datetime

import msgspec

from configs.packages import ROOMS
from configs.schema import Distributed, Observe, Parallel

FIELDS = "fields"
"""Attribute of a record (``extra``) whose mapping becomes an object of the line."""


def configure(observe: Observe, process: str, ranks: str = "") -> None:
    """Set up logging of this process, called ``process`` in every line, on standard error.

    The project's packages speak from ``observe.log_level`` up, all others from ``warning`` up. ``ranks`` follows the
    process's name.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(process, ranks) if observe.log_format == "json" else TextLines(process + ranks))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for room in ROOMS:
        logging.getLogger(room).setLevel(observe.log_level.upper())


def rank_prefix(parallel: Parallel, replica: int, distributed: Distributed | None = None) -> str:
    """Which part of the engine speaks, as far as there are several; one process speaks for all devices of a host.

    (Document: M-15.)
    """
    here = distributed or Distributed()
    first = here.rank * parallel.devices // here.hosts
    parts = (
        ("DP", replica, parallel.replicas),
        ("TP", first % parallel.tensor, parallel.tensor),
        ("PP", 0, parallel.stages),
        ("HOST", here.rank, here.hosts),
    )
    return "".join(f" {name}{rank}" for name, rank, size in parts if size > 1)


class TextLines(logging.Formatter):
    """``2026-01-31 12:00:00.123 INFO engine-0 scheduler.engine: message``, and fields as one JSON object after it."""

    def __init__(self, process: str) -> None:
        super().__init__(
            f"%(asctime)s.%(msecs)03d %(levelname)s {process} %(name)s: %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
        )

    def format(self, record: logging.LogRecord) -> str:
        """One record as one line, or more with an exception."""
        fields = record.__dict__.get(FIELDS)
        line = super().format(record)
        return line if fields is None else f"{line} {msgspec.json.encode(fields).decode()}"


class JsonLines(logging.Formatter):
    """``time`` (RFC 3339, UTC), ``level``, ``process``, ``logger``, ``message``.

    Where there are any: ``ranks``, ``fields``, ``exception``.
    """

    def __init__(self, process: str, ranks: str = "") -> None:
        super().__init__()
        self._process = process
        self._ranks = ranks.strip()

    def format(self, record: logging.LogRecord) -> str:
        """One record as one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._ranks:
            line["ranks"] = self._ranks
        fields = record.__dict__.get(FIELDS)
        if fields is not None:
            line["fields"] = fields
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()
