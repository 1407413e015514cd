"""What an engine tells the collector."""

import itertools

from model.interface import CompileReport, Family, Variant
from scheduler.assembly import assemble
from scheduler.commands import Command, Compiled, Shutdown, StepStats, StepTimes
from scheduler.loop import run
from scheduler.reporter import Reporter
from scheduler.stopwatch import Stopwatch, TimedEngine
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask


class Outlet:
    def __init__(self) -> None:
        self.reports: list[StepStats | StepTimes | Compiled] = []

    def report(self, stats: StepStats | StepTimes | Compiled) -> None:
        self.reports.append(stats)


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
    wanted = Compiled(family="mixed", variant="full", size=64, seconds=1.5, from_cache=True)
    assert [report for report in seen if isinstance(report, Compiled)] == [wanted, wanted]
