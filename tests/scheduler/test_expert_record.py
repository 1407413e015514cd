"""The record of experts: start, stop, dump, and a placement by it (document: O-42)."""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from scheduler.commands import ExpertDistribution, Reply
from scheduler.expert_record import ExpertRecord


@dataclass
class Host:
    """Two layers of four experts on two devices; the counter is about to wrap around."""

    layers: tuple[int, ...] = (1, 3)
    taken: np.ndarray = field(default_factory=lambda: np.full((2, 4), 2**32 - 3, np.uint32))
    even: bool = False

    def take(self, *tokens: int) -> None:
        self.taken = self.taken + np.array([tokens, tokens[::-1]], np.uint32)

    def counts(self) -> np.ndarray:
        return self.taken

    def imbalance(self, loads: np.ndarray) -> list[float]:
        return [1.0 if self.even else float(2 * max(row[:2].sum(), row[2:].sum()) / max(row.sum(), 1)) for row in loads]

    def rebalance(self, loads: np.ndarray) -> None:
        assert loads.any()
        self.even = True


def ask(record: ExpertRecord, action: str) -> Reply:
    command = msgspec.convert({"call": "c", "action": action}, ExpertDistribution)
    ((origin, reply),) = record.handlers[ExpertDistribution](3, command, 0)
    assert origin == 3
    assert isinstance(reply, Reply)
    return reply


def opened(folder: Path, host: Host) -> ExpertRecord:
    return ExpertRecord(host, str(folder / "dumps"), lambda: "record")


def test_a_dump_holds_what_was_taken_between_start_and_stop_and_is_a_file(tmp_path: Path) -> None:
    host = Host()
    record = opened(tmp_path, host)
    host.take(9, 9, 9, 9)
    assert ask(record, "start").success
    host.take(6, 2, 0, 0)
    running = ask(record, "dump")
    assert running.state["layers"] == {"1": [6, 2, 0, 0], "3": [0, 0, 2, 6]}
    assert ask(record, "stop").success
    host.take(5, 5, 5, 5)
    stopped = ask(record, "dump")
    assert stopped.state == running.state
    assert stopped.state["imbalance"] == [2.0, 2.0]
    written = msgspec.json.decode(Path(str(stopped.state["file"])).read_bytes())
    assert written == {"layers": stopped.state["layers"], "imbalance": stopped.state["imbalance"]}


def test_a_second_start_and_a_stop_without_a_start_are_refused(tmp_path: Path) -> None:
    record = opened(tmp_path, Host())
    assert ask(record, "stop").message == "No record is running."
    assert ask(record, "start").success
    assert ask(record, "start").message == "A record is running already."


def test_a_placement_says_how_uneven_it_was_and_is_and_begins_the_record_anew(tmp_path: Path) -> None:
    host = Host()
    record = opened(tmp_path, host)
    ask(record, "start")
    assert "no record to go by" in ask(record, "rebalance").message
    host.take(6, 2, 0, 0)
    reply = ask(record, "rebalance")
    assert reply.state == {"imbalance_before": [2.0, 2.0], "imbalance_after": [1.0, 1.0]}
    assert ask(record, "dump").state["layers"] == {"1": [0, 0, 0, 0], "3": [0, 0, 0, 0]}
    host.take(1, 1, 1, 1)
    assert ask(record, "dump").state["layers"] == {"1": [1, 1, 1, 1], "3": [1, 1, 1, 1]}


def test_a_folder_that_cannot_be_written_is_an_answer(tmp_path: Path) -> None:
    (tmp_path / "dumps").write_text("a file")
    reply = ask(opened(tmp_path, Host()), "dump")
    assert not reply.success
    assert "cannot be written" in reply.message
