"""Step records: what each says, that together they tell the truth, and that the file is bounded."""

import dataclasses
import json
import logging
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.schema import Observe
from model.interface import StepInput
from scheduler import step_records
from scheduler.assembly import Settings, assemble
from scheduler.commands import Abort, Command, GetState, Reply, Shutdown
from scheduler.loop import run
from scheduler.profiling import with_step_times
from scheduler.step_record import StepRecord
from scheduler.step_records import RecordFile, StepRecords, open_step_records, record_of
from scheduler.step_time_dict import MAX_SIZES, TIMES_OF_A_SIZE, StepTimeDict
from scheduler.stopwatch import Stopwatch, TimedEngine, TimedStep
from scheduler.tick import Tick
from tests.fakes import EchoHandle, FakeClock, KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, Played, Watcher, ask, play

DOCUMENTED = [
    "batch_id",
    "timestamp",
    "schedule_duration_ms",
    "model_run_duration_ms",
    "total_step_duration_ms",
    "num_prefill_reqs",
    "num_decode_reqs",
    "total_scheduled_tokens",
    "prefill_chunk_sizes",
    "decode_chunk_sizes",
    "avg_prefill_chunk_size",
    "max_prefill_chunk_size",
    "min_prefill_chunk_size",
    "avg_decode_chunk_size",
    "num_waiting_reqs",
    "num_running_reqs",
    "kv_cache_usage",
]
OURS = [
    "mode",
    "bucket",
    "padding",
    "cached_tokens",
    "retractions",
    "receive_ms",
    "plan_ms",
    "launch_ms",
    "commit_ms",
    "emit_ms",
]


class TimedRunner(KVEchoRunner):
    """Tells a stopwatch of every launch, as the real one does."""

    watch: Stopwatch

    def launch(self, step: StepInput) -> EchoHandle:
        self.watch.launching(step)
        return super().launch(step)


@dataclasses.dataclass
class SleepyPort(ScriptedPort):
    """Sleeps for a second whenever the engine is idle."""

    watch_clock: FakeClock = dataclasses.field(default_factory=FakeClock)

    def wait(self, limit_s: float | None = None) -> Tick:
        self.watch_clock.now_ns += 10**9
        return super().wait(limit_s)


class Kept:
    def __init__(self) -> None:
        self.steps: list[TimedStep] = []

    def timed(self, step: TimedStep) -> None:
        self.steps.append(step)


class Timed:
    """A script played with a clock around the engine that only moves when it is read."""

    def __init__(self, script: dict[int, list[Command]], settings: Settings = SETTINGS) -> None:
        turns: dict[int, list[tuple[int, Command]]] = {
            turn: [(0, command) for command in commands] for turn, commands in script.items()
        }
        turns[10_000] = [(0, Shutdown())]
        self.clock, watcher, kept = FakeClock(), Watcher(), Kept()
        watch = Stopwatch(self.clock)
        runner, port = TimedRunner(SHAPES, keep_steps=True), SleepyPort(turns, watch_clock=self.clock)
        runner.watch = watch
        engine = assemble(port, runner, settings, (watch, watcher))
        self.times = StepTimeDict()
        engine.handlers[GetState] = with_step_times(engine.handlers[GetState], self.times)
        run(TimedEngine(engine, watch, lambda: 1703123456.789, (kept, self.times)), settings.depth)
        self.played = Played(port, runner, watcher.events)
        self.steps = kept.steps
        self.records = [record_of(step) for step in kept.steps]


requests = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 6), st.integers(0, 12), st.booleans()), min_size=1, max_size=8
)


def script_of(drawn: list[tuple[int, int, int, bool]]) -> dict[int, list[Command]]:
    script: dict[int, list[Command]] = {}
    for number, (length, output, turn, abort) in enumerate(drawn):
        script.setdefault(turn, []).append(ask(f"r{number}", [token % 7 for token in range(length)], output))
        if abort:
            script.setdefault(turn + 2, []).append(Abort(rid=f"r{number}"))
    return script


@hypothesis_settings(max_examples=30, deadline=None)
@given(requests, st.sampled_from([0, 1]), st.sampled_from([64, 20]))
def test_every_batch_has_one_record_that_accounts_for_its_tokens(
    drawn: list[tuple[int, int, int, bool]], depth: int, pages: int
) -> None:
    # document: V-1
    settings = msgspec.structs.replace(SETTINGS, depth=depth, max_inflight=depth, num_pages=pages)
    timed = Timed(script_of(drawn), settings)
    launched: list[StepInput] = timed.played.runner.steps
    assert [record.batch_id for record in timed.records] == [step.step for step in launched]
    for record, step in zip(timed.records, launched, strict=True):
        sizes = record.prefill_chunk_sizes + record.decode_chunk_sizes
        assert sum(sizes) == record.total_scheduled_tokens == step.num_tokens
        assert len(record.prefill_chunk_sizes) == record.num_prefill_reqs
        assert len(record.decode_chunk_sizes) == record.num_decode_reqs == step.num_decode
        assert record.bucket == step.size
        assert record.padding == step.size - step.num_tokens
        assert record.num_running_reqs is not None
        assert record.num_running_reqs >= len(sizes)
    # timing changes nothing
    assert timed.played.port.answers == play(script_of(drawn), settings).port.answers


@hypothesis_settings(max_examples=30, deadline=None)
@given(requests, st.sampled_from([0, 1]))
def test_durations_fit_into_each_other_and_totals_do_not_overlap(
    drawn: list[tuple[int, int, int, bool]], depth: int
) -> None:
    # documents: V-1, V-3
    timed = Timed(script_of(drawn), msgspec.structs.replace(SETTINGS, depth=depth, max_inflight=depth))
    end_ns = 0
    for step in timed.steps:
        laps = step.laps
        assert min(laps.receive, laps.plan, laps.build, laps.model, laps.commit, laps.emit) > 0
        assert laps.build < laps.launch
        assert laps.commit + laps.emit < laps.total
        if not depth:
            assert laps.receive + laps.plan + laps.build + laps.model + laps.commit + laps.emit <= laps.total
        end_ns += laps.total
    # no sleep is in a total, and no stretch in two: each sleep is a second, all readings together are less
    assert end_ns < timed.clock.now_ns % 10**9


def test_the_line_has_the_documents_fields_in_their_order_and_can_be_searched() -> None:
    # document: V-1
    timed = Timed({0: [ask("a", [1, 2, 3, 4, 5], 2)]})
    line = msgspec.json.encode(timed.records[0])
    assert list(json.loads(line)) == DOCUMENTED + OURS
    assert b": " not in line
    assert b'"timestamp":1703123456.789,' in line
    slow = msgspec.structs.replace(timed.records[0], schedule_duration_ms=12.0)
    assert b'"schedule_duration_ms":12.0' in msgspec.json.encode(slow)


def test_averages_are_zero_where_there_is_nothing_to_average() -> None:
    # document: V-1
    timed = Timed({0: [ask("a", [1, 2, 3], 3)]})
    first, last = timed.records[0], timed.records[-1]
    assert (first.mode, last.mode) == ("extend", "decode")
    assert (first.avg_decode_chunk_size, first.avg_prefill_chunk_size) == (0.0, 3.0)
    assert (last.avg_prefill_chunk_size, last.max_prefill_chunk_size, last.min_prefill_chunk_size) == (0.0, 0, 0)


def test_records_name_the_mode_cached_tokens_and_retractions() -> None:
    # documents: V-1, O-43
    prompt = list(range(1, 13))
    timed = Timed({0: [ask("a", prompt, 8)], 4: [ask("b", [*prompt, 13, 14], 2)]})
    mixed = next(record for record in timed.records if record.mode == "mixed")
    assert mixed.cached_tokens == 12
    starved = msgspec.structs.replace(SETTINGS, num_pages=17, conservativeness=0.01)
    timed = Timed({0: [ask("a", [1, 2, 3, 4], 16), ask("b", [5, 6, 7, 8], 16)]}, starved)
    assert sum(record.retractions or 0 for record in timed.records) == 1


def test_the_state_shows_the_newest_times_of_decode_steps_by_batch_size() -> None:
    # documents: M-1, M-18
    timed = Timed({0: [ask("a", [1, 2], 6), ask("b", [3, 4], 3)], 30: [GetState(call="now")]})
    (reply,) = [answer for _, answer in timed.played.port.answers if isinstance(answer, Reply)]
    told = json.loads(str(reply.state["step_time_dict"]))
    decoded = [len(step.plan.decode) for step in timed.steps if not step.plan.pieces]
    assert {int(size): len(times) for size, times in told.items()} == {n: decoded.count(n) for n in set(decoded)}
    assert all(seconds > 0 for times in told.values() for seconds in times)


def test_step_times_are_bounded() -> None:
    # document: M-18
    timed = Timed({0: [ask("a", [1, 2], 3)]})
    step, times = timed.steps[-1], StepTimeDict()
    row = step.plan.decode[0]
    for size in range(1, MAX_SIZES + 5):
        step.plan = dataclasses.replace(step.plan, decode=(row,) * size)
        for _ in range(TIMES_OF_A_SIZE + 1):
            times.timed(step)
    told = json.loads(times.state()["step_time_dict"])
    assert len(told) == MAX_SIZES
    assert {len(kept) for kept in told.values()} == {TIMES_OF_A_SIZE}


def observe(folder: Path, **values: object) -> Observe:
    return msgspec.convert({"step_records": True, "step_records_file": str(folder / "steps.jsonl"), **values}, Observe)


def written(path: Path) -> list[StepRecord]:
    return [msgspec.json.decode(line, type=StepRecord) for line in path.read_bytes().splitlines()]


def test_what_is_written_is_what_was_timed(tmp_path: Path) -> None:
    # documents: V-1, V-7
    timed = Timed({0: [ask("a", [1, 2, 3], 5), ask("b", [4] * 20, 3)]})
    records = open_step_records(observe(tmp_path))
    assert records is not None
    for step in timed.steps:
        records.timed(step)
    records.close()
    assert written(tmp_path / "steps.jsonl") == timed.records
    assert records.dropped == 0


def test_nothing_is_opened_unless_asked_and_a_bad_path_is_a_clear_error(tmp_path: Path) -> None:
    # documents: V-2, V-6
    assert open_step_records(Observe()) is None
    with pytest.raises(ConfigError, match=r"observe.step_records_file.*cannot write step records"):
        open_step_records(Observe(step_records=True, step_records_file=str(tmp_path / "no" / "steps.jsonl")))


@pytest.mark.parametrize("files", [1, 3])
def test_files_are_bounded_whole_lines_and_the_newest_stay(tmp_path: Path, files: int) -> None:
    # document: V-7
    path, lines = tmp_path / "steps.jsonl", [b"%06d\n" % number for number in range(1000)]
    path.write_bytes(b"of the run before\n")
    file = RecordFile(path, 700, files)
    for at in range(0, 1000, 10):
        file.write(lines[at : at + 10])
        assert sum(one.stat().st_size for one in tmp_path.iterdir()) <= 700
    file.close()
    names = [path, *(tmp_path / f"steps.jsonl.{number}" for number in range(1, files))]
    assert sorted(tmp_path.iterdir()) == sorted(names)
    kept = b"".join(name.read_bytes() for name in reversed(names)).splitlines(keepends=True)
    assert kept == lines[-len(kept) :]
    assert len(kept) > 30


def test_a_new_run_moves_the_file_of_the_run_before_aside(tmp_path: Path) -> None:
    # document: V-7
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b"before\n")
    RecordFile(path, 2**20, 2).close()
    assert (path.read_bytes(), (tmp_path / "steps.jsonl.1").read_bytes()) == (b"", b"before\n")


class FullDisk(RecordFile):
    def write(self, lines: object) -> None:
        raise OSError(28, "No space left on device")


def test_a_full_disk_ends_the_records_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # document: V-7
    timed = Timed({0: [ask("a", [1, 2, 3], 5)]})
    records = StepRecords(FullDisk(tmp_path / "steps.jsonl", 2**20, 1), console=False)
    for step in timed.steps:
        records.timed(step)
    records.close()
    assert [record.message for record in caplog.records] == [
        "the step records end here: [Errno 28] No space left on device"
    ]


def test_steps_beyond_the_queue_are_dropped_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # document: V-7
    monkeypatch.setattr(step_records, "MAX_WAITING", 3)
    monkeypatch.setattr(step_records, "WRITE_EVERY_S", 60.0)
    timed = Timed({0: [ask("a", [1, 2, 3], 9)]})
    records = StepRecords(RecordFile(tmp_path / "steps.jsonl", 2**20, 1), console=False)
    for step in timed.steps:
        records.timed(step)
    records.close()
    assert records.dropped == len(timed.steps) - 3
    assert len(written(tmp_path / "steps.jsonl")) == 3
    assert f"{records.dropped} steps left no record" in caplog.text


def test_the_console_prints_the_statistics_and_says_when_the_log_level_hides_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # documents: V-2, V-6
    caplog.set_level(logging.INFO, "scheduler")
    timed = Timed({0: [ask("a", [1, 2, 3], 5)]})
    records = open_step_records(observe(tmp_path, step_records_console=True))
    assert records is not None
    for step in timed.steps:
        records.timed(step)
    records.close()
    assert "schedule time, P95" in caplog.text
    caplog.clear()
    hidden = open_step_records(observe(tmp_path, step_records_console=True, log_level="warning"))
    assert hidden is not None
    hidden.close()
    assert "observe.log_level hides that" in caplog.text
