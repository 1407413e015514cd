"""Reads files of step records, ours and vLLM's, a line at a time (documents: V-3, V-6, V-7)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from scheduler.step_record import StepRecord
from scheduler.step_statistics import Statistics

MAX_LINE: Final = 2**20
SHOWN: Final = 10
"""Lines that are no records and are named; the rest are counted."""


class ReadingError(Exception):
    """A file gives nothing to analyse; the text says what to look at."""


@dataclass(slots=True)
class Reading:
    """What a file holds."""

    name: str
    statistics: Statistics
    bad: int = 0
    """Lines that are no records."""
    complaints: list[str] = field(default_factory=list[str])
    """What is wrong with the first of them, with file and line."""


def read(path: Path) -> Reading:
    """Take in every record of a file.

    Raises:
        ReadingError: the file cannot be read, or holds no record.
    """
    reading = Reading(path.name, Statistics())
    decoder = msgspec.json.Decoder(StepRecord)
    try:
        for number, line in _lines(path):
            try:
                if len(line) > MAX_LINE:
                    raise ValueError(f"longer than {MAX_LINE} bytes")
                reading.statistics.add(decoder.decode(line))
            except (msgspec.DecodeError, ValueError) as error:
                reading.bad += 1
                if len(reading.complaints) < SHOWN:
                    reading.complaints.append(f"{path}:{number}: not a step record: {error}")
    except OSError as error:
        raise ReadingError(f"{path}: {error.strerror}") from error
    if reading.statistics.batches:
        return reading
    if reading.bad:
        raise ReadingError(
            "\n".join([*reading.complaints, f"{path}: none of its {reading.bad} lines is a step record"])
        )
    raise ReadingError(
        f"{path}: empty. Was observe.step_records (RADJAX_ENABLE_SCHEDULER_PROFILING) on, is this the file of "
        "observe.step_records_file (RADJAX_SCHEDULER_PROFILING_LOG), may the server write it, and did any request run?"
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and text of every line that is not blank; of one that is too long, its beginning."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            rest = line
            while not rest.endswith(b"\n") and (rest := file.readline(MAX_LINE)):
                pass
            if line.strip():
                yield number, line
