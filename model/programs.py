"""The programs of a start configuration: which there are, and compiling them ahead of time on threads."""

import gc
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import jax

from model.batch import Program
from model.interface import CompileListener, CompileReport, Family, Shapes, Variant
from model.recipe import Recipe
from model.sections import Executable, compile_step

_LOG = logging.getLogger(__name__)
Executables = tuple[Executable, ...]
T = TypeVar("T")

COMPILE_THREADS = 2
CACHE_HIT = "/jax/compilation_cache/cache_hits"


def all_programs(shapes: Shapes) -> list[Program]:
    """Every program, in the order of compilation: what serving cannot begin without comes first."""
    lean = ladder(shapes, Variant.LEAN)
    first = essential(shapes)
    rest = [program for program in lean if program not in first]
    return [*first, *rest, *ladder(shapes, Variant.FULL), Program(Family.SCORE, Variant.LEAN, shapes.score_tokens)]


def ladder(shapes: Shapes, variant: Variant) -> list[Program]:
    """The decode and mixed programs of one variant, small ones first."""
    decode = [Program(Family.DECODE, variant, rows) for rows in shapes.decode_rows]
    return decode + [Program(Family.MIXED, variant, tokens) for tokens in shapes.mixed_tokens]


def essential(shapes: Shapes) -> list[Program]:
    """Ready means these: the largest of each family, into which every step fits, and the smallest decode step.

    The mixed one comes first, as it takes longest; then those of decode steps, small ones first.
    """
    decode = [Program(Family.DECODE, Variant.LEAN, rows) for rows in (shapes.decode_rows[0], shapes.decode_rows[-1])]
    return list(dict.fromkeys([Program(Family.MIXED, Variant.LEAN, shapes.mixed_tokens[-1]), *decode]))


class Programs:
    """Compiled programs as they become ready; a program is one executable for each stage."""

    def __init__(self, recipes: Sequence[Recipe], count_sizes: Sequence[int], listen: CompileListener) -> None:
        self.recipes = tuple(recipes)
        """By stage."""
        self.shapes = recipes[0].shapes
        self._listen = listen
        self._pool = ThreadPoolExecutor(COMPILE_THREADS, thread_name_prefix="compile")
        self._steps: dict[Program, Future[Executables]] = {}
        self._counts: dict[int, Future[jax.stages.Compiled]] = {}
        self._count_sizes = tuple(count_sizes)
        self._hits = CacheHits()
        self.late = 0
        """Programs that a step had to wait for."""

    def adopt(self, program: Program, compiled: Executables) -> None:
        """Take ``program`` as it was compiled elsewhere for the same recipes."""
        self._steps[program] = Future()
        self._steps[program].set_result(compiled)

    def start(self) -> None:
        """Begin to compile what serving cannot begin without. Returns at once."""
        for program in essential(self.shapes):
            self._steps[program] = self._pool.submit(self._compile, program)

    def go_on(self) -> None:
        """Begin to compile the rest, in order of importance. Returns at once; a second call does nothing."""
        rest = [program for program in all_programs(self.shapes) if program not in self._steps]
        for program in rest:
            self._steps[program] = self._pool.submit(self._compile, program)
        for size in self._count_sizes:
            if size not in self._counts:
                self._counts[size] = self._pool.submit(self.recipes[-1].compile_counts, size)
        if rest:
            self._pool.submit(self._settle)

    def wait(self, program: Program) -> None:
        """Block until ``program`` is compiled."""
        self._steps[program].result()

    def wait_all(self) -> None:
        """Block until everything is compiled."""
        self.go_on()
        for future in (*self._steps.values(), *self._counts.values()):
            future.result()

    def choose(self, wanted: Program) -> Program:
        """``wanted`` if it is ready, otherwise the next larger ready one of its kind, otherwise ``wanted``."""
        if wanted in self._steps and self._steps[wanted].done():
            return wanted
        larger = (p for p in self._steps if p.family is wanted.family and p.variant is wanted.variant)
        ready = [p for p in larger if p.size > wanted.size and self._steps[p].done()]
        return min(ready, key=lambda p: p.size, default=wanted)

    def step(self, program: Program) -> Executables:
        """``program`` by stage; waits for it, counts and logs that, when it is not ready."""
        return self._ready(str(program), self._steps[program])

    def counts(self, length: int) -> tuple[int, jax.stages.Compiled]:
        """The smallest count program that takes ``length`` entries, and its size."""
        size = next(size for size in self._count_sizes if size >= length)
        return size, self._ready(f"counts/{size}", self._counts[size])

    def close(self) -> None:
        """Drop what has not begun to compile."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ready(self, name: str, future: Future[T]) -> T:
        if not future.done():
            self.late += 1
            _LOG.warning("a step waits for the program %s to be compiled", name)
        return future.result()

    def _settle(self) -> None:
        # what tracing left behind lives as long as the programs: a full collection took 0.6 s of a step
        self.wait_all()
        gc.freeze()

    def _compile(self, program: Program) -> Executables:
        began, hits = time.perf_counter(), self._hits.of_this_thread()
        compiled = self._compile_stages(program)
        seconds, from_cache = time.perf_counter() - began, self._hits.of_this_thread() > hits
        self._listen(CompileReport(program.family, program.variant, program.size, seconds, from_cache))
        return compiled

    def _compile_stages(self, program: Program) -> Executables:
        if program.variant is Variant.LEAN:
            return tuple(compile_step(recipe, program) for recipe in self.recipes)
        # begun before this one by the same threads; what has no head is the same for all variants
        *same, lean = self._steps[replace(program, variant=Variant.LEAN)].result()
        return (*same, compile_step(self.recipes[-1], program, lean))


class CacheHits:
    """Hits of JAX's persistent compilation cache, counted by thread."""

    def __init__(self) -> None:
        self._local = threading.local()
        jax.monitoring.register_event_listener(self._on_event)

    def of_this_thread(self) -> int:
        """Hits so far of the calling thread."""
        return self._local.__dict__.get("hits", 0)

    def _on_event(self, event: str, **_: object) -> None:
        if event == CACHE_HIT:
            self._local.hits = self.of_this_thread() + 1


def enable_cache(folder: str) -> None:
    """Keep compiled programs in ``folder`` across starts."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
