"""Profiles on command: the handlers of ``/start_profile`` and ``/stop_profile``, and the names of the host's phases."""

from collections.abc import Mapping

from msgspec import structs

from model.interface import ProfileOptions, Profiler, ProfileRefused
from scheduler.channel import Origin
from scheduler.commands import Command, Reply, StartProfile, StopProfile
from scheduler.loop import Verbs
from scheduler.operations import Handler
from scheduler.planner import Plan
from scheduler.port import Answer
from scheduler.results import Step
from scheduler.step_time_dict import StepTimeDict


class ProfileControl:
    """Handlers of the two commands; a refusal is an answer (document: M-10)."""

    def __init__(self, profiler: Profiler) -> None:
        self._profiler = profiler
        self.handlers: Mapping[type[Command], Handler] = {StartProfile: self._start, StopProfile: self._stop}

    def _start(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        del now_ns
        assert isinstance(command, StartProfile)
        asked = structs.asdict(command)
        del asked["call"]
        try:
            folder = self._profiler.start(ProfileOptions(**asked))
        except ProfileRefused as refused:
            return [(origin, Reply(call=command.call, success=False, message=str(refused)))]
        state = {"output_dir": str(folder)}
        return [(origin, Reply(call=command.call, success=True, message="Succeeded", state={**state}))]

    def _stop(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        del now_ns
        assert isinstance(command, StopProfile)
        try:
            self._profiler.stop()
        except ProfileRefused as refused:
            return [(origin, Reply(call=command.call, success=False, message=str(refused)))]
        return [(origin, Reply(call=command.call, success=True, message="Succeeded"))]


def with_step_times(handler: Handler, times: StepTimeDict) -> Handler:
    """A handler of a question for the state whose answer also tells the newest step times (document: M-18)."""

    def state(origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        answers = handler(origin, command, now_ns)
        return [
            (to, structs.replace(answer, state={**answer.state, **times.state()}))
            if isinstance(answer, Reply)
            else (to, answer)
            for to, answer in answers
        ]

    return state


class NamedEngine:
    """An engine's five verbs, each named in a trace that runs."""

    def __init__(self, engine: Verbs, profiler: Profiler) -> None:
        self._engine = engine
        self._profiler = profiler

    @property
    def serving(self) -> bool:
        """See ``Verbs``."""
        return self._engine.serving

    def receive(self) -> list[Answer]:
        """See ``Verbs``."""
        with self._profiler.phase("receive"):
            return self._engine.receive()

    def plan(self) -> Plan:
        """See ``Verbs``."""
        with self._profiler.phase("plan"):
            return self._engine.plan()

    def launch(self, plan: Plan) -> Step | None:
        """See ``Verbs``."""
        with self._profiler.phase("launch"):
            return self._engine.launch(plan)

    def commit(self, step: Step) -> list[Answer]:
        """See ``Verbs``."""
        with self._profiler.phase("commit"):
            return self._engine.commit(step)

    def emit(self, answers: list[Answer]) -> None:
        """See ``Verbs``."""
        with self._profiler.phase("emit"):
            self._engine.emit(answers)
