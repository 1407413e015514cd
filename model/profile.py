"""Device profiles: drives ``jax.profiler`` over the steps that somebody asks for (documents: M-10, O-32)."""

import contextlib
import itertools
import logging
import os
import shutil
import socket
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jax

from configs.errors import ConfigError
from model.interface import Family, ProfileOptions, ProfileRefused, StepHandle, StepInput
from model.trace_schedule import TraceSchedule, Tracing, trace_schedule

logger = logging.getLogger(__name__)

SETTLE_S: Final = 10.0
"""How long the end of a trace waits for its last step."""
FAILURES: Final = (RuntimeError, OSError, ValueError)
"""What ``jax.profiler`` raises where another session runs or nothing can be written."""


@dataclass(slots=True)
class Profile:
    """A profile in progress."""

    options: ProfileOptions
    schedule: TraceSchedule
    folder: Path
    name: str
    session: Tracing = Tracing.OFF
    """What ``jax.profiler`` does now."""

    @property
    def traces(self) -> bool:
        """Whether there is more to it than snapshots of memory."""
        return self.options.activities != ("MEM",)

    @property
    def run_folder(self) -> Path:
        """Where ``jax.profiler`` puts a trace at first."""
        return self.folder / "plugins" / "profile" / f"{self.name}-unfinished"


class DeviceProfiler:
    """``Profiler``; the runner tells it of every launch.

    Args:
        folder: where traces go unless told otherwise; None: a new folder among the system's temporary ones.
        annotate: name steps and phases even while no profile runs, for those who capture from outside.
    """

    def __init__(self, folder: str | None, annotate: bool = False) -> None:
        self._folder = folder
        self._annotate = annotate
        self._profile: Profile | None = None
        self._count = 0
        """Number of the step launched last."""
        self._stage = ""
        self._annotation: jax.profiler.StepTraceAnnotation | None = None

    def start(self, options: ProfileOptions) -> Path:
        """See ``Profiler``."""
        if self._profile is not None:
            raise ProfileRefused("Profiling is already in progress. Call /stop_profile first.")
        schedule = trace_schedule(options, self._count)
        name = options.profile_id or time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        try:
            folder = self._open(options.output_dir or self._folder)
        except OSError as error:
            raise ProfileRefused(f"Cannot write to the output folder: {error.strerror}.") from error
        self._profile = profile = Profile(options, schedule, folder, name)
        logger.info("Profiling starts. Traces will be saved to: %s", folder)
        if not schedule.by_stage:
            # begun here and not with the step, so that a refusal is an answer
            try:
                self._switch(profile, schedule.before(self._count + 1, ""))
            except FAILURES as error:
                self._profile = None
                raise ProfileRefused(f"The profiler did not start: {error}") from error
        return folder

    def stop(self) -> None:
        """See ``Profiler``."""
        profile = self._profile
        if profile is None:
            raise ProfileRefused("Profiling is not in progress. Call /start_profile first.")
        self._profile = None
        try:
            self._end(profile)
        except FAILURES as error:
            raise ProfileRefused(f"The trace was not saved: {error}") from error

    def phase(self, name: str) -> AbstractContextManager[None]:
        """See ``Profiler``."""
        if self._profile is None and not self._annotate:
            return contextlib.nullcontext()
        return jax.profiler.TraceAnnotation(name)

    def launching(self, step: StepInput) -> None:
        """The runner is about to start a step: begin or end what is due, and name the step."""
        self._count = step.step
        self._stage = "decode" if step.family is Family.DECODE else "prefill"
        profile = self._profile
        if profile is not None:
            try:
                self._switch(profile, profile.schedule.before(step.step, self._stage))
            except FAILURES as error:
                self._give_up(error)
        if self._profile is not None or self._annotate:
            rows = int((step.lengths > 0).sum())
            self._annotation = jax.profiler.StepTraceAnnotation(
                f"{step.family} {step.size}",
                step_num=step.step,
                variant=step.variant.value,
                rows=rows,
                tokens=step.num_tokens,
            )
            self._annotation.__enter__()

    def launched(self, handle: StepHandle) -> None:
        """A step was started: write the trace if it ends with this step."""
        annotation, self._annotation = self._annotation, None
        if annotation is not None:
            annotation.__exit__(None, None, None)
        profile = self._profile
        if profile is None:
            return
        try:
            if profile.session is Tracing.ON and profile.schedule.after(self._count, self._stage):
                settle(handle)
                self._end(profile)
        except FAILURES as error:
            self._give_up(error)
        if profile.schedule.done(self._count):
            self._profile = None

    def _give_up(self, error: Exception) -> None:
        """The service goes on without the profile."""
        logger.error("the profile ends here: %s", error)
        self._profile = None
        with contextlib.suppress(*FAILURES):  # there may be no session to end
            jax.profiler.stop_trace()

    def _open(self, folder: str | None) -> Path:
        """The folder, made for its owner alone where it was not there."""
        if folder is None:
            return Path(tempfile.mkdtemp(prefix="radjax-profile-"))
        path = Path(folder).expanduser().absolute()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied", str(path))
        return path

    def _switch(self, profile: Profile, wanted: Tracing) -> None:
        """Make the session what it is to be while the next step runs."""
        if profile.session is wanted:
            return
        if profile.session is not Tracing.OFF:
            self._discard(profile)
        if wanted is not Tracing.OFF and profile.traces:
            jax.profiler.start_trace(profile.folder, profiler_options=session_options(profile))
        profile.session = wanted

    def _discard(self, profile: Profile) -> None:
        """End a warm-up; what it traced goes."""
        if profile.traces:
            jax.profiler.stop_trace()
            shutil.rmtree(profile.run_folder)
        profile.session = Tracing.OFF

    def _end(self, profile: Profile) -> None:
        """Write what was traced up to now."""
        if profile.session is Tracing.WARM_UP:
            self._discard(profile)
        stage = f"-{(profile.schedule.stage or self._stage).upper()}" if profile.schedule.by_stage else ""
        name = f"{profile.name}{stage}-trace_{self._count}"
        if profile.session is Tracing.ON and profile.traces:
            profile.session = Tracing.OFF
            jax.profiler.stop_trace()
            logger.info("Profiler trace saved to %s", keep(profile, name))
        if "MEM" in profile.options.activities:
            path = profile.folder / f"{name}.memory.prof"
            jax.profiler.save_device_memory_profile(str(path))
            logger.info("device memory saved to %s", path)
        profile.session = Tracing.OFF


def session_options(profile: Profile) -> jax.profiler.ProfileOptions:
    """What ``jax.profiler`` is told. The accelerator is always traced; names of steps are, with or without CPU."""
    asked, options = profile.options, jax.profiler.ProfileOptions()
    options.host_tracer_level = 2 if "CPU" in asked.activities else 1
    options.python_tracer_level = int(asked.with_stack)
    options.enable_hlo_proto = asked.record_shapes
    options.raise_error_on_start_failure = True
    options.session_id = profile.run_folder.name
    return options


def keep(profile: Profile, name: str) -> Path:
    """Name a trace: a run that TensorBoard lists, and beside it the file for any reader of Chrome traces."""
    runs = profile.run_folder.parent
    free = next(
        one for one in itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2))) if not (runs / one).exists()
    )
    run = profile.run_folder.rename(runs / free)
    trace = profile.folder / f"{free}.json.gz"
    for written in run.glob("*.trace.json.gz"):
        written.replace(trace)
    return trace


def settle(handle: StepHandle) -> None:
    """Wait until the device has run a step, so that the trace holds the whole of it."""
    deadline = time.monotonic() + SETTLE_S
    while not handle.ready() and time.monotonic() < deadline:
        time.sleep(0.001)


def listen(port: int) -> None:
    """Let TensorBoard capture from this process, on every interface: JAX's server knows no other way.

    Raises:
        ConfigError: the port is taken; JAX's server would only print that.
    """
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        message = f"cannot be listened on: {error.strerror}"
        raise ConfigError(message, key="observe.profiler_port", value=port) from error
    jax.profiler.start_server(port)
    logger.warning("the profiler listens on port %d of every interface (observe.profiler_any_interface)", port)
