"""Composition root of the engine process: launch file → mesh → model → runner → engine → loop."""

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import zmq

from configs.errors import ConfigError
from configs.memory import memory_plan
from configs.resolve import banner, cache_dir, resolve
from configs.schema import EngineConfig, Resolved
from model.device_state import allocate, state_shapes
from model.interface import CompileReport, Shapes
from model.ladders import make_shapes
from model.loading.folder import ModelFolder
from model.loading.hf_config import read_config
from model.loading.source import fetch
from model.programs import Programs, Recipe, enable_cache
from model.registry import Blueprint, blueprint, facts
from model.runner import JaxRunner
from model.weights import load_weights
from scheduler.assembly import build_engine
from scheduler.channel import Channel
from scheduler.commands import Progress, Ready
from scheduler.engine import Engine
from scheduler.loop import run
from scheduler.observe import Observer
from scheduler.start import EngineStart, exit_with_parent, read_start
from scheduler.zmq_channel import ZmqChannel
from sharding.mesh import build_mesh, hardware_facts, prepare_devices

OnProgress = Callable[[Progress], None]
COUNT_SIZE = 512
"""Entries of the smaller program that rebuilds penalty counts; the larger takes a whole context."""


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
        """The ready report. (Document: O-11.)"""
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
            architecture=self.model.spec.architecture,
            banner=self.banner,
        )


@dataclass(slots=True, frozen=True)
class RunningEngine:
    """An engine on its channel."""

    setup: Setup
    engine: Engine

    def run(self) -> None:
        """Serve until Shutdown."""
        try:
            run(self.engine, self.setup.resolved.depth)
        finally:
            self.setup.programs.close()


def prepare(config: EngineConfig, name: str, on_progress: OnProgress) -> Setup:
    """Fetch the model, decide every ``auto``, and begin to compile; weights are not loaded yet.

    Raises:
      ConfigError: the launch file asks for what this machine or model cannot give.
    """
    on_progress(Progress(stage="model", done=0, total=0, detail=config.model.source))
    cache = Path(cache_dir(config.model.cache_dir)).expanduser()
    enable_cache(str(cache / "compiled"))
    prepare_devices(config.parallel)
    folder = fetch(
        config.model.source,
        cache,
        lambda stage, done, total: on_progress(Progress(stage=stage, done=done, total=total)),
    )
    spec = read_config(folder)
    mesh, hardware, tensor = build_mesh(config.parallel), hardware_facts(), config.parallel.tensor
    # every platform's auto is bfloat16
    held = blueprint(spec, mesh, "bfloat16" if config.model.dtype == "auto" else config.model.dtype)
    resolved = resolve(config, name, hardware, facts(spec), held.weight_bytes)
    assert resolved.dtype == held.dtype, "the weights were measured in another dtype"
    shapes = make_shapes(
        resolved.max_running_requests,
        resolved.chunk_tokens,
        resolved.page_size,
        resolved.context_length,
        spec.vocab_size,
    )
    state = state_shapes(spec, held.layout, shapes, resolved.num_pages + 1, resolved.dtype, mesh)
    programs = Programs(
        Recipe(held, shapes, state),
        sorted({min(COUNT_SIZE, resolved.context_length), resolved.context_length}),
        compile_progress(on_progress),
    )
    programs.start()
    lines = banner(resolved, hardware, tensor) + memory_plan(resolved, facts(spec), held.weight_bytes, hardware, tensor)
    return Setup(folder, held, resolved, shapes, programs, lines)


def compile_progress(on_progress: OnProgress) -> Callable[[CompileReport], None]:
    """Reports each program as it becomes ready."""

    def report(done: CompileReport) -> None:
        origin = "from the cache" if done.from_cache else "compiled"
        detail = f"{done.family} {done.variant} {done.size}: {origin} in {done.seconds:.1f} s"
        on_progress(Progress(stage="program", done=0, total=0, detail=detail))

    return report


def make_runner(config: EngineConfig, setup: Setup, on_progress: OnProgress) -> JaxRunner:
    """Load the weights while programs compile; returns when serving can begin."""

    def loaded(done: int, total: int) -> None:
        on_progress(Progress(stage="weights", done=done, total=total))

    leaves = load_weights(config.model, setup.folder, setup.model, loaded)
    state = allocate(setup.programs.recipe.state)
    setup.programs.wait_essential()
    return JaxRunner(setup.programs, [leaves[name] for name in setup.model.leaves], state, setup.shapes)


def open_engine(
    config: EngineConfig, name: str, channel: Channel, on_progress: OnProgress, observers: tuple[Observer, ...] = ()
) -> RunningEngine:
    """Everything up to the loop, on a channel of the caller's.

    Raises:
      ConfigError: see ``prepare``.
    """
    setup = prepare(config, name, on_progress)
    runner = make_runner(config, setup, on_progress)
    engine = build_engine(channel, runner, setup.resolved, config, setup.model.spec.eos_token_ids, observers)
    return RunningEngine(setup, engine)


def main() -> int:
    """The engine process: reads an EngineStart from standard input and serves until Shutdown or SIGTERM."""
    start = read_start(sys.stdin.buffer, EngineStart)
    exit_with_parent(sys.stdin.buffer)
    # a terminal's Ctrl-C reaches the whole group; the launcher decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = ZmqChannel(zmq.Context.instance(), start.endpoints, start.replica)
    try:
        running = open_engine(start.config, start.name, channel, channel.broadcast, (channel,))
    except ConfigError as error:
        print(f"radjax: {error}", file=sys.stderr, flush=True)
        return 2
    channel.broadcast(running.setup.ready())
    running.run()
    return 0


if __name__ == "__main__":
    assert Path(sys.modules["scheduler"].__path__[0]).is_relative_to(Path(__file__).parents[1]), "another `scheduler`"
    jax.config.update("jax_numpy_rank_promotion", "raise")
    sys.exit(main())
