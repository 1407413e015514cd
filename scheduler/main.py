"""Composition root of the engine process: launch file → mesh → model → runner → engine → loop."""

import contextlib
import gc
import itertools
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import jax
import zmq

from configs import gc_pauses, log
from configs.errors import ConfigError
from configs.memory import memory_plan
from configs.mesh_sizes import refuse_sizes
from configs.packages import check_packages
from configs.replicas import share_of
from configs.resolve import banner, cache_dir, resolve, weight_dtype
from configs.schema import EngineConfig, Observe, Resolved
from model.device_state import state_shapes
from model.host_pool import HostPool, fingerprint, staging_memory
from model.interface import CompileReport, Shapes
from model.ladders import shapes_of
from model.loading.folder import ModelFolder
from model.loading.hf_config import read_config
from model.loading.source import fetch
from model.pipeline import open_stages
from model.profile import DeviceProfiler, listen
from model.programs import Programs, all_programs, enable_cache
from model.recipe import Recipe
from model.registry import Blueprint, facts, joined, stage_blueprints
from model.runner import NO_HOOKS, JaxRunner, LaunchHooks
from model.sections import section_layers
from model.weights import load_weights
from scheduler.assembly import build_engine, port_on, settings_from
from scheduler.channel import Channel
from scheduler.commands import FAILED, Progress, Ready
from scheduler.engine import Engine
from scheduler.expert_record import ExpertRecord
from scheduler.hosts import ONE_HOST, Hosts, meet, open_hosts, pool
from scheduler.instruments import Instruments, instruments
from scheduler.loop import run
from scheduler.observe import Observer
from scheduler.plan_post import PlanPost
from scheduler.recording import Recorder, open_recorder
from scheduler.reporter import Reporter
from scheduler.start import EngineStart, exit_with_parent, read_start
from scheduler.step_log import StepLog
from scheduler.watchers import OnStuck, Watchers, open_watchers
from scheduler.zmq_channel import ZmqChannel, last_words
from sharding.claim import claim
from sharding.mesh import build_mesh, hardware_facts, prepare_devices
from sharding.processes import join
from sharding.processes import leave as part

OnProgress = Callable[[Progress], None]
CRASHED: Final = 1
MISUSED: Final = 2
COUNT_SIZE = 512
"""Entries of the smaller program that rebuilds penalty counts; the larger takes a whole context."""

logger = logging.getLogger("scheduler.main")
"""By name: as a process of its own this module is ``__main__``."""


@dataclass(slots=True, frozen=True)
class Setup:
    """A model that is ready to run, and what was decided about it."""

    folder: ModelFolder
    model: Blueprint
    resolved: Resolved
    shapes: Shapes
    programs: Programs
    banner: list[str]

    def ready(self) -> Ready:
        """The ready report (document: O-11)."""
        resolved = self.resolved
        pool = resolved.num_pages * resolved.page_size
        return Ready(
            status="ready",
            max_total_num_tokens=pool,
            max_req_input_len=min(resolved.context_length, pool) - 1,
            context_length=resolved.context_length,
            vocab_size=self.model.spec.vocab_size,
            eos_token_ids=list(self.model.spec.eos_token_ids),
            folder=str(self.folder.path),
            served_name=resolved.served_name,
            max_running_requests=resolved.max_running_requests,
            page_size=resolved.page_size,
            num_pages=resolved.num_pages,
            architecture=self.model.spec.architecture,
            banner=self.banner,
        )


@dataclass(slots=True, frozen=True)
class Place:
    """Where an engine stands among others."""

    replica: int = 0
    sharing: int = 1
    """Engines that divide this machine's memory."""
    hosts: Hosts = ONE_HOST
    """Those that are this engine together."""


@dataclass(slots=True, frozen=True)
class RunningEngine:
    """An engine on its channel."""

    setup: Setup
    engine: Engine
    recorder: Recorder | None
    instruments: Instruments
    watchers: Watchers

    def run(self, on_stuck: OnStuck | None = None) -> None:
        """Serve until Shutdown; ``on_stuck`` ends a process whose engine makes no progress."""
        try:
            with self.watchers.over(self.engine, on_stuck):
                run(self.instruments.around(self.engine), self.setup.resolved.depth)
        finally:
            self.watchers.close()
            self.engine.close()
            self.setup.programs.close()
            self.instruments.close()
            if self.recorder is not None:
                self.recorder.close()


def prepare(
    config: EngineConfig,
    name: str,
    on_progress: OnProgress,
    reporter: Reporter | None = None,
    place: Place = Place(),
) -> Setup:
    """Fetch the model, decide every ``auto``, and begin to compile; weights are not loaded yet.

    Raises:
      ConfigError: the launch file asks for what this machine or model cannot give.
    """
    if config.distributed.hosts != place.hosts.count:
        what = "only radjax serve starts an engine over several hosts"
        raise ConfigError(what, key="distributed.hosts", value=config.distributed.hosts, suggestion="leave it at 1")
    on_progress(Progress(stage="model", done=0, total=0, detail=config.model.source))
    cache = Path(cache_dir(config.model.cache_dir)).expanduser()
    enable_cache(str(cache / "compiled"))
    prepare_devices(config.parallel, config.distributed.hosts)
    folder = fetch(
        config.model.source,
        cache,
        lambda stage, done, total: on_progress(Progress(stage=stage, done=done, total=total)),
    )
    spec = read_config(folder)
    meet(place.hosts, facts(spec))
    join(config.distributed)
    hardware, shards = pool(place.hosts, share_of(hardware_facts(), place.sharing)), config.parallel.shards
    refuse_sizes(config.parallel, facts(spec), hardware.num_devices)
    parts = stage_blueprints(spec, build_mesh(config.parallel), weight_dtype(config.model.dtype, hardware.platform))
    held, sizes = joined(parts), [part.stage for part in parts]
    resolved = resolve(config, name, hardware, facts(spec), held.weight_bytes, sizes)
    shapes = shapes_of(resolved, spec.vocab_size)
    window_pages = resolved.window_pages + 1 if resolved.window_pages else 0
    parts = [replace(part, attention=resolved.attention) for part in parts]
    states = [state_shapes(one, shapes, resolved.num_pages + 1, window_pages) for one in parts]
    programs = Programs(
        [Recipe(one, shapes, state, section_layers(one)) for one, state in zip(parts, states, strict=True)],
        sorted({min(COUNT_SIZE, resolved.context_length), resolved.context_length}),
        compile_progress(on_progress, len(all_programs(shapes)), reporter),
    )
    programs.start()
    lines = banner(resolved, hardware, shards) + memory_plan(
        resolved, facts(spec), held.weight_bytes, hardware, shards, sizes
    )
    return Setup(folder, held, resolved, shapes, programs, lines)


def compile_progress(on_progress: OnProgress, total: int, reporter: Reporter | None) -> Callable[[CompileReport], None]:
    """Reports each program as it becomes ready; called from the compiling threads."""
    ready = itertools.count(1)

    def report(done: CompileReport) -> None:
        origin = "from the cache" if done.from_cache else "compiled"
        detail = f"{done.family} {done.variant} {done.size}: {origin} in {done.seconds:.1f} s"
        on_progress(Progress(stage="programs", done=next(ready), total=total, detail=detail))
        if reporter is not None:
            reporter.compiled(done)

    return report


def make_runner(
    config: EngineConfig, setup: Setup, on_progress: OnProgress, hooks: LaunchHooks = NO_HOOKS, hosts: Hosts = ONE_HOST
) -> JaxRunner:
    """Load the weights while programs compile; returns when serving can begin.

    Several hosts begin with all programs: which are ready decides which a step takes, and that must be the same.
    """

    def loaded(done: int, total: int) -> None:
        on_progress(Progress(stage="weights", done=done, total=total))

    leaves = load_weights(config.model, setup.folder, setup.model, loaded)
    stages = open_stages(setup.programs.recipes, leaves)
    if hosts.count > 1:
        setup.programs.wait_all()
        hosts.exchange(b"loaded")
    host = None
    if setup.resolved.host_pages:
        made_of, (recipe,) = fingerprint(config.model, setup.folder), setup.programs.recipes
        mesh = recipe.model.mesh
        host = HostPool(setup.resolved.host_pages, recipe.state, mesh, made_of, staging_memory(mesh.devices.flat))
    runner = JaxRunner(setup.programs, stages, setup.shapes, hooks, host)
    runner.warm_up()
    setup.programs.go_on()
    return runner


def open_engine(
    config: EngineConfig,
    name: str,
    channel: Channel,
    on_progress: OnProgress,
    observers: tuple[Observer, ...] = (),
    reporter: Reporter | None = None,
    place: Place = Place(),
) -> RunningEngine:
    """Everything up to the loop, on a channel of the caller's; ``reporter`` is told of all that there is to report.

    Raises:
      ConfigError: see ``prepare``.
    """
    setup, replica, hosts = prepare(config, name, on_progress, reporter, place), place.replica, place.hosts
    with contextlib.ExitStack() as undo:
        undo.callback(setup.programs.close)
        around, hooks = make_instruments(config.observe, reporter)
        undo.callback(around.close)
        watchers = open_watchers(config.observe, config.parallel, setup.resolved, replica)
        undo.callback(watchers.close)
        runner = make_runner(config, setup, on_progress, hooks, hosts)
        eos_ids = setup.model.spec.eos_token_ids
        recorder = open_recorder(config.observe, setup.shapes, settings_from(setup.resolved, config, eos_ids))
        undo.pop_all()
    lines = StepLog(config.observe.decode_log_interval, setup.shapes.mixed_tokens[-1])
    if reporter is not None:
        observers = (*observers, reporter)
    watching = (*around.observers, *observers, lines, *watchers.observers, *([] if recorder is None else [recorder]))
    port = hosts.port(port_on(channel))
    engine = build_engine(port, runner, setup.resolved, config, eos_ids, watching, replica, watchers.listener)
    if runner.experts is not None and hosts.count == 1:
        name_dump = partial(dump_name, replica)
        engine.handlers.update(ExpertRecord(runner.experts, config.observe.expert_distribution_dir, name_dump).handlers)
    return RunningEngine(setup, engine, recorder, around, watchers)


def dump_name(replica: int) -> str:
    """Name of a record of experts that is written now."""
    return f"expert_distribution_recorder_{time.time():.3f}_{replica}"


def make_instruments(observe: Observe, reporter: Reporter | None) -> tuple[Instruments, LaunchHooks]:
    """What times and names steps, and how the runner tells it of launches.

    Raises:
      ConfigError: a file cannot be written, or the profiler's port is open to more than was meant.
    """
    profiler = DeviceProfiler(observe.profiler_dir, annotate=observe.profiler_port is not None)
    around = instruments(observe, profiler, reporter)
    if observe.profiler_port is not None:
        listen(observe.profiler_port)
    return around, LaunchHooks((profiler.launching, around.stopwatch.launching), (profiler.launched,))


class Announcer:
    """Progress to the wire until the engine's thread has the channel to itself, then to nobody."""

    def __init__(self, channel: Channel) -> None:
        self._channel: Channel | None = channel
        self._lock = threading.Lock()

    def announce(self, progress: Progress) -> None:
        """Send one piece of progress; from any thread."""
        with self._lock:
            if self._channel is not None:
                self._channel.broadcast(progress)

    def finish(self, ready: Ready) -> None:
        """Send the ready report, and nothing after it."""
        with self._lock:
            assert self._channel is not None, "an engine becomes ready once"
            self._channel.broadcast(ready)
            self._channel = None

    def silence(self) -> None:
        """Send nothing from now on."""
        with self._lock:
            self._channel = None


def serve(start: EngineStart, channel: ZmqChannel, hosts: Hosts, observers: tuple[Observer, ...] = ()) -> int:
    """Become ready and serve; returns the exit code. Whatever ends it early is said to the launcher first."""
    announcer = Announcer(channel)
    try:
        reporter = Reporter(channel, start.replica)
        running = open_engine(
            start.config,
            start.name,
            channel,
            announcer.announce,
            observers,
            reporter,
            Place(start.replica, start.sharing, hosts),
        )
        if not start.config.distributed.rank:  # the others leave with host 0
            signal.signal(signal.SIGTERM, lambda number, frame: channel.stop())
        announcer.finish(running.setup.ready())
        reporter.flush()

        def leave(reason: str) -> None:
            last_words(start.endpoints, reason, start.replica)
            os._exit(CRASHED)  # the engine's thread is stuck, and would never leave by itself

        gc.freeze()  # the model and its programs stay: no collection need visit them
        running.run(leave)
        part()
    except ConfigError as error:
        announcer.silence()
        channel.broadcast(Progress(stage=FAILED, done=0, total=0, detail=str(error)))
        return MISUSED
    except Exception as error:
        announcer.silence()
        logger.critical("the engine dies", exc_info=error)
        lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
        channel.broadcast(Progress(stage=FAILED, done=0, total=0, detail="; ".join(lines)))
        return CRASHED
    return 0


def main(observers: tuple[Observer, ...] = ()) -> int:
    """The engine process: reads an EngineStart from standard input and serves until Shutdown or SIGTERM.

    ``observers`` are beside those that the launch file asks for.
    """
    check_packages()
    jax.config.update("jax_numpy_rank_promotion", "raise")  # pyright: ignore[reportUnknownMemberType]  jax has no type here
    start = read_start(sys.stdin.buffer, EngineStart)
    exit_with_parent(sys.stdin.buffer)
    claim(start.config.parallel, start.replica)
    ranks = log.rank_prefix(start.config.parallel, start.replica, start.config.distributed)
    log.configure(start.config.observe, f"engine-{start.replica}", ranks)
    gc_pauses.watch(start.config.observe.gc_warning_s)
    # a terminal's Ctrl-C reaches the whole group; the launcher decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    context: zmq.Context[zmq.SyncSocket] = zmq.Context()
    channel = ZmqChannel(context, start.endpoints, start.replica, start.life)
    hosts = open_hosts(context, start.config.distributed)
    post = PlanPost(context, start.endpoints) if hosts.count > 1 else None
    try:
        code = serve(start, channel, hosts, observers if post is None else (*observers, post))
    finally:
        # the process is ending already, and the channel can no longer be woken
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if post is not None:
            post.close()
        hosts.close()
        channel.close()
        context.term()
    if code and hosts.count > 1:
        os._exit(code)  # jax would wait for the others, who may be stuck
    return code


if __name__ == "__main__":
    sys.exit(main())
