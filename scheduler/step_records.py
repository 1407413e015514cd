"""Step records: one JSON line a scheduled batch, written on a thread of their own (documents: V-1, V-2, V-7)."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from configs.errors import ConfigError
from configs.schema import Observe
from model.interface import Family
from scheduler.planner import Plan
from scheduler.step_record import StepRecord
from scheduler.step_statistics import Statistics, lines
from scheduler.stopwatch import TimedStep

logger = logging.getLogger(__name__)

WRITE_EVERY_S: Final = 0.25
PRINT_EVERY_S: Final = 10.0
MAX_WAITING: Final = 16_384
"""Steps that wait for the thread; at a thousand a second it may stand still for sixteen seconds."""


def record_of(step: TimedStep) -> StepRecord:
    """A step as its record."""
    plan, laps = step.plan, step.laps
    pieces, decode = [piece.length for piece in plan.pieces], len(plan.decode)
    tokens = sum(pieces) + decode
    return StepRecord(
        batch_id=step.step,
        timestamp=round(step.started_s, 6),
        schedule_duration_ms=_ms(laps.receive + laps.plan + laps.build),
        model_run_duration_ms=_ms(laps.model),
        total_step_duration_ms=_ms(laps.total),
        num_prefill_reqs=len(pieces),
        num_decode_reqs=decode,
        total_scheduled_tokens=tokens,
        prefill_chunk_sizes=pieces,
        decode_chunk_sizes=[1] * decode,
        avg_prefill_chunk_size=round(sum(pieces) / len(pieces), 2) if pieces else 0.0,
        max_prefill_chunk_size=max(pieces, default=0),
        min_prefill_chunk_size=min(pieces, default=0),
        avg_decode_chunk_size=1.0 if decode else 0.0,
        num_waiting_reqs=step.occupancy.waiting,
        num_running_reqs=step.occupancy.running,
        kv_cache_usage=round(step.occupancy.kv_usage, 4),
        mode=mode(plan),
        bucket=plan.size,
        padding=plan.size - tokens,
        cached_tokens=step.cached_tokens,
        retractions=step.retractions,
        receive_ms=_ms(laps.receive),
        plan_ms=_ms(laps.plan),
        launch_ms=_ms(laps.launch),
        commit_ms=_ms(laps.commit),
        emit_ms=_ms(laps.emit),
    )


def mode(plan: Plan) -> str:
    """The batch's mode in the documents' words (O-43)."""
    if plan.family is Family.MIXED:
        return "mixed" if plan.decode else "extend"
    return plan.family.value


def _ms(nanoseconds: int) -> float:
    return round(max(0, nanoseconds) / 1e6, 3)


class RecordFile:
    """A file that is moved aside when it is full; ``PATH.1`` is the newest of its predecessors.

    Args:
        path: of the file; one that is there is moved aside first, so that a file is of one run.
        limit_bytes: of the file and its predecessors together.
        files: how many there may be.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, limit_bytes: int, files: int) -> None:
        self._path = path
        self._limit = limit_bytes // files
        self._files = files
        if path.exists() and path.stat().st_size:
            self._shift()
        self._file: BinaryIO = path.open("wb")
        self._size = 0

    def write(self, lines: Iterable[bytes]) -> None:
        """Append lines, each of them in one file; with the system when this returns.

        Raises:
            OSError: the disk is full, or the folder has gone.
        """
        for line in lines:
            if self._size and self._size + len(line) > self._limit:
                self._file.close()
                self._shift()
                self._file = self._path.open("wb")
                self._size = 0
            self._file.write(line)
            self._size += len(line)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _shift(self) -> None:
        """Make room at ``path``: every predecessor gets the next number, and the last one goes."""
        names = [self._path, *(Path(f"{self._path}.{number}") for number in range(1, self._files))]
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            if newer.exists():
                newer.replace(older)


class StepRecords:
    """A ``StepListener`` that writes records. The engine's thread only appends to a bounded queue.

    Args:
        file: takes them.
        console: whether to log statistics from time to time.
    """

    def __init__(self, file: RecordFile, console: bool) -> None:
        self.dropped = 0
        """Steps without a record because the thread was behind."""
        self._file = file
        self._writing = True
        self._waiting: deque[TimedStep] = deque()
        self._statistics = Statistics() if console else None
        self._encoder = msgspec.json.Encoder()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="step-records", daemon=True)
        self._thread.start()

    def timed(self, step: TimedStep) -> None:
        """See ``StepListener``."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(step)
        else:
            self.dropped += 1

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._done.set()
        self._thread.join()
        self._file.close()

    def _run(self) -> None:
        printed, said = time.monotonic(), 0
        ending = False
        while not ending:
            ending = self._done.wait(WRITE_EVERY_S)
            self._drain()
            if (ending or time.monotonic() - printed >= PRINT_EVERY_S) and self._statistics is not None:
                printed = time.monotonic()
                self._print(self._statistics)
            if self.dropped > said:
                logger.warning("%d steps left no record: the disk is too slow", self.dropped - said)
                said = self.dropped

    def _drain(self) -> None:
        """Write the steps that wait now, as many at a time as make a moderate block."""
        while self._waiting:
            records = [record_of(self._waiting.popleft()) for _ in range(min(len(self._waiting), 64))]
            if self._statistics is not None:
                for record in records:
                    self._statistics.add(record)
            if self._writing:
                self._write(records)

    def _write(self, records: list[StepRecord]) -> None:
        try:
            self._file.write(self._encoder.encode(record) + b"\n" for record in records)
        except OSError as error:
            logger.error("the step records end here: %s", error)  # the service goes on without them
            self._writing = False

    def _print(self, statistics: Statistics) -> None:
        """Log what the batches since the last time add up to."""
        if statistics.batches:
            logger.info("step records:\n%s", "\n".join(lines(statistics)))
            self._statistics = Statistics()


def open_step_records(observe: Observe) -> StepRecords | None:
    """What a launch file asks for; None if it asks for none.

    Raises:
        ConfigError: the file cannot be written.
    """
    if not observe.step_records:
        return None
    if observe.step_records_console and observe.log_level in ("warning", "error"):
        logger.warning(
            "observe.step_records_console prints at level info, and observe.log_level hides that: %s", observe.log_level
        )
    path = Path(observe.step_records_file)
    try:
        file = RecordFile(path, observe.step_records_limit_bytes, observe.step_records_files)
    except OSError as error:
        message = f"cannot write step records: {error.strerror}"
        raise ConfigError(message, key="observe.step_records_file", value=str(path)) from error
    logger.info("step records go to %s", path.absolute())
    return StepRecords(file, observe.step_records_console)
