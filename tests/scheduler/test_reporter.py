"""What an engine tells the collector."""

import itertools

import pytest

from model.interface import CompileReport, Family, Variant
from scheduler.assembly import assemble
from scheduler.commands import Command, Compiled, Reports, Shutdown, StepStats, StepTimes
from scheduler.loop import run
from scheduler.reporter import MAX_UNSENT, REPORT_EVERY_NS, Reporter
from scheduler.stopwatch import Stopwatch, TimedEngine
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask
from tests.serving.process.figures import step_stats


class Outlet:
    def __init__(self) -> None:
        self.reports: list[StepStats | StepTimes | Compiled] = []

        self.sent: list[int] = []

    def report(self, stats: Reports) -> None:
        self.reports += stats.reports
        self.sent.append(len(stats.reports))


class Told(KVEchoRunner):
    """An echo runner that tells the stopwatch of launches."""

    watch: Stopwatch

    def launch(self, step):
        self.watch.launching(step)
        return super().launch(step)


def reports(script: dict[int, list[Command]], *compiled: CompileReport) -> list[StepStats | StepTimes | Compiled]:
    ticks = itertools.count(step=1_000_000)
    watch, outlet = Stopwatch(lambda: next(ticks)), Outlet()
    reporter, runner = Reporter(outlet, 3), Told(SHAPES)
    runner.watch = watch
    for each in compiled:
        reporter.compiled(each)
    turns = {turn: [(0, command) for command in commands] for turn, commands in script.items()}
    turns[1_000] = [(0, Shutdown())]
    engine = assemble(ScriptedPort(turns), runner, SETTINGS, (watch, reporter))
    run(TimedEngine(engine, watch, lambda: 0.0, (reporter,)), SETTINGS.depth)
    return outlet.reports


def test_every_step_has_one_report_of_figures_and_one_of_times_for_the_same_bucket() -> None:
    # document: M-1, O-31
    seen = reports({0: [ask(str(i), [1] * (i + 3), 6) for i in range(5)]})
    figures = [(stats.family, stats.size) for stats in seen if isinstance(stats, StepStats) and stats.family]
    times = [stats for stats in seen if isinstance(stats, StepTimes)]
    assert [(each.family, each.size) for each in times] == figures
    for each in times:
        host_s = each.receive_s + each.plan_s + each.launch_s + each.commit_s + each.emit_s
        assert each.replica == 3
        assert each.step_s > 0
        assert min(each.receive_s, each.plan_s, each.launch_s, each.commit_s, each.emit_s) > 0
        assert host_s < 1


def test_programs_are_told_once_with_the_next_figures() -> None:
    done = CompileReport(Family.MIXED, Variant.FULL, 64, 1.5, True)
    seen = reports({0: [ask("a", [1, 2], 3)]}, done, done)
    wanted = Compiled(family="mixed", variant="full", size=64, seconds=1.5, from_cache=True, replica=3)
    assert [report for report in seen if isinstance(report, Compiled)] == [wanted, wanted]


@pytest.mark.parametrize(
    ("apart_ns", "sent"), [(REPORT_EVERY_NS, [1] * 9), (REPORT_EVERY_NS // 4, [1, 4, 4]), (0, [1])]
)
def test_steps_that_follow_one_another_fast_are_told_of_together(apart_ns: int, sent: list[int]) -> None:
    times = itertools.count(REPORT_EVERY_NS, apart_ns) if apart_ns else itertools.repeat(REPORT_EVERY_NS)
    outlet = Outlet()
    reporter = Reporter(outlet, 0, lambda: next(times))
    for step in range(9):
        reporter.observe(step_stats(step=step, family="decode", size=8, step_tokens=1))
    assert outlet.sent == sent
    reporter.observe(step_stats(step=9))
    assert [stats.step for stats in outlet.reports if isinstance(stats, StepStats)] == list(range(10)), "a rest is told"


def test_what_is_not_sent_yet_is_bounded() -> None:
    outlet = Outlet()
    reporter = Reporter(outlet, 0, lambda: 0)
    for step in range(3 * MAX_UNSENT):
        reporter.observe(step_stats(step=step, family="decode", size=8, step_tokens=1))
    assert max(outlet.sent) == MAX_UNSENT
