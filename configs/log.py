"""Logging of every process: lines of text for people, or one JSON object a line for machines."""

import logging
import sys
from datetime import UTC, datetime

import msgspec

from configs.packages import ROOMS
from configs.schema import Observe


def configure(observe: Observe, process: str) -> None:
    """Set up logging of this process, called ``process`` in every line, on standard error.

    The project's packages speak from ``observe.log_level`` up, all others from ``warning`` up.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(process) if observe.log_format == "json" else TextLines(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for room in ROOMS:
        logging.getLogger(room).setLevel(observe.log_level.upper())


class TextLines(logging.Formatter):
    """``2026-01-31 12:00:00.123 INFO engine-0 scheduler.engine: message``."""

    def __init__(self, process: str) -> None:
        super().__init__(
            f"%(asctime)s.%(msecs)03d %(levelname)s {process} %(name)s: %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
        )


class JsonLines(logging.Formatter):
    """``time`` (RFC 3339, UTC), ``level``, ``process``, ``logger``, ``message``; ``exception`` where there is one."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """One record as one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()
