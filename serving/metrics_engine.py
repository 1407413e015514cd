"""What engines report, as families: gauges of now, totals since the start, and every step by its bucket."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, get_args

import msgspec

from scheduler.commands import LEAK_POOLS, Compiled, LeakPool, Ready, StepStats, StepTimes
from serving.metrics_family import Counts, Family, Histograms, Kind, Labels, Sample

STEP_S: Final = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10),
)
HOST_S: Final = (0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 1)
SILENT_S: Final = 10.0
"""As far back as throughputs look."""
COMPILE_S: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
STEP_TOKENS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(slots=True, frozen=True)
class Figure:
    """One sample of every engine. ``of`` is None where the engine has no such feature: then there is no sample."""

    stem: str
    text: str
    of: Callable[[StepStats], float | None]
    labels: tuple[tuple[str, str], ...] = ()
    rate: bool = False
    """Whether it is nothing when the engine has not reported for ``SILENT_S``, be it that it hangs."""


_BY_CAUSE: Final = "Requests that wait to run, for room in steps, slots and pages or for the storage."
GAUGES: Final[tuple[Figure, ...]] = (
    Figure("num_running_reqs", "Requests that run now.", lambda s: s.num_running),
    Figure("num_queue_reqs", "Requests that wait to run.", lambda s: s.num_queued),
    Figure(
        "num_queue_reqs_by_cause",
        _BY_CAUSE,
        lambda s: s.num_queued - (s.tiers.num_loading if s.tiers else 0),
        (("cause", "capacity"),),
    ),
    Figure(
        "num_queue_reqs_by_cause",
        _BY_CAUSE,
        lambda s: s.tiers.num_loading if s.tiers else 0,
        (("cause", "storage"),),
    ),
    Figure("num_grammar_queue_reqs", "Requests that wait for their grammar.", lambda s: s.num_grammar_queue),
    Figure("num_used_tokens", "Tokens of pages that running requests hold.", lambda s: s.tokens_used),
    Figure("num_cached_tokens", "Tokens of pages in the prefix cache, in use or not.", lambda s: s.tokens_cached),
    Figure("kv_used_tokens", "Tokens of pages in use (locked).", lambda s: s.tokens_used),
    Figure("kv_available_tokens", "Tokens of pages that are free.", lambda s: s.tokens_free),
    Figure("kv_evictable_tokens", "Tokens of pages that only the prefix cache holds.", lambda s: _evictable(s)),
    Figure("max_total_num_tokens", "Tokens that the KV pool can hold.", lambda s: s.tokens_total),
    Figure(
        "token_usage",
        "Share of the KV pool in use, 0 to 1; of a hybrid one the larger share.",
        lambda s: round(max(_share(s), s.swa_token_usage or 0.0), 2),
    ),
    Figure(
        "full_token_usage", "Share in use of the pages of layers that see everything.", lambda s: round(_share(s), 2)
    ),
    Figure("swa_token_usage", "Share in use of the pages of layers with a window.", lambda s: s.swa_token_usage),
    Figure("hicache_host_used_tokens", "Tokens in host memory.", lambda s: s.tiers and s.tiers.host_used),
    Figure("hicache_host_total_tokens", "Tokens that host memory can hold.", lambda s: s.tiers and s.tiers.host_total),
    Figure("gen_throughput", "Output tokens a second; 0 when idle.", lambda s: s.gen_throughput, rate=True),
    Figure(
        "input_throughput", "Prompt tokens computed a second; 0 when idle.", lambda s: s.input_throughput, rate=True
    ),
    Figure(
        "cache_hit_rate",
        "Prompt tokens from the prefix cache ÷ prompt tokens, since the start.",
        lambda s: s.cached_tokens / s.prompt_tokens if s.prompt_tokens else 0.0,
    ),
    Figure(
        "new_token_ratio",
        "Share of its output that an admitted request is assumed to need.",
        lambda s: s.new_token_ratio,
    ),
    Figure("num_waiting_prompt_tokens", "Prompt tokens of the queue.", lambda s: s.waiting_prompt_tokens),
    Figure(
        "num_pending_prompt_tokens", "Prompt tokens to compute, waiting and running.", lambda s: s.pending_prompt_tokens
    ),
    Figure("spec_accept_length", "Tokens accepted a verification, since the start.", lambda s: s.spec_accept_length),
    Figure(
        "num_decode_prealloc_queue_reqs",
        "Requests that wait for pages before the transfer.",
        lambda s: s.num_prealloc_queue,
    ),
    Figure("num_decode_transfer_queue_reqs", "Requests whose pages are on their way.", lambda s: s.num_transfer_queue),
    Figure("paused", "1 while generation stands still on command.", lambda s: s.paused),
)


def _leaks(pool: str) -> Figure:
    return Figure("leaks", "Leaks found at rest, by pool.", lambda s: s.leaks.get(pool), (("pool", pool),))


_BY_SOURCE: Final = "Prompt tokens of admitted requests, by where they came from."
_REALTIME: Final = "Tokens as they are computed or found in the cache."
COUNTERS: Final[tuple[Figure, ...]] = (
    Figure(
        "num_retracted_requests",
        "Times that a running request gave its pages back to be recomputed.",
        lambda s: s.retractions,
    ),
    Figure("num_retracted_input_tokens", "Prompt tokens of retracted requests.", lambda s: s.retracted_input_tokens),
    Figure("num_retracted_output_tokens", "Output tokens of retracted requests.", lambda s: s.retracted_output_tokens),
    Figure(
        "num_preempted_requests", "Times that a running request gave way to a more urgent one.", lambda s: s.preemptions
    ),
    Figure(
        "num_displaced_requests", "Requests dropped from a full queue for a more urgent one.", lambda s: s.displaced
    ),
    Figure("num_waiting_timeouts", "Requests that waited for too long and were refused.", lambda s: s.waiting_timeouts),
    Figure("num_running_timeouts", "Requests that ran for too long and were aborted.", lambda s: s.running_timeouts),
    Figure("evicted_tokens", "Tokens that the prefix cache forgot to make room.", lambda s: s.evicted_tokens),
    Figure("late_compiles", "Programs compiled on the engine's thread after it was ready.", lambda s: s.late_compiles),
    Figure("prefix_cache_queries", "Prompt tokens of admitted requests.", lambda s: s.prompt_tokens),
    Figure("prefix_cache_hits", "Of those, tokens found in the prefix cache.", lambda s: s.cached_tokens),
    Figure(
        "prompt_tokens_by_source",
        _BY_SOURCE,
        lambda s: s.prompt_tokens - s.cached_tokens,
        (("source", "computed"),),
    ),
    Figure("prompt_tokens_by_source", _BY_SOURCE, lambda s: _from_device(s), (("source", "device"),)),
    Figure("prompt_tokens_by_source", _BY_SOURCE, lambda s: s.tiers and s.tiers.cached_host, (("source", "host"),)),
    Figure(
        "prompt_tokens_by_source", _BY_SOURCE, lambda s: s.tiers and s.tiers.cached_storage, (("source", "storage"),)
    ),
    Figure(
        "tier_queries",
        "Prompt tokens that the device had not, where there are tiers below.",
        lambda s: s.tiers and s.prompt_tokens - _from_device(s),
    ),
    Figure(
        "tier_hits", "Of those, tokens found in the tiers.", lambda s: s.tiers and s.cached_tokens - _from_device(s)
    ),
    Figure("host_saved_tokens", "Tokens copied to host memory.", lambda s: s.tiers and s.tiers.saved),
    Figure("load_back_tokens", "Tokens copied back from host memory.", lambda s: s.tiers and s.tiers.loaded),
    Figure("host_evicted_tokens", "Tokens that host memory forgot.", lambda s: s.tiers and s.tiers.host_evicted),
    Figure("backuped_tokens", "Tokens given to the storage.", lambda s: s.tiers and s.tiers.stored),
    Figure("prefetched_tokens", "Tokens fetched from the storage.", lambda s: s.tiers and s.tiers.fetched),
    *(_leaks(pool) for pool in get_args(LeakPool)),
    Figure(
        "realtime_tokens", _REALTIME, lambda s: s.scheduled_tokens - s.decode_tokens, (("mode", "prefill_compute"),)
    ),
    Figure("realtime_tokens", _REALTIME, lambda s: s.cached_tokens, (("mode", "prefill_cache"),)),
    Figure("realtime_tokens", _REALTIME, lambda s: s.decode_tokens, (("mode", "decode"),)),
    Figure("step_tokens", "Tokens computed by steps, without padding.", lambda s: s.scheduled_tokens),
    Figure("padded_tokens", "Tokens of padding computed by steps.", lambda s: s.padded_tokens),
    Figure("decode_steps", "Steps of the decode family.", lambda s: s.steps_decode),
    Figure("mixed_steps", "Steps of the mixed family.", lambda s: s.steps_mixed),
    Figure("score_steps", "Steps of the score family.", lambda s: s.steps_score),
)


CONSTANTS: Final[tuple[tuple[str, str, Callable[[Ready], int]], ...]] = (
    ("max_running_requests", "Requests that may run at once.", lambda ready: ready.max_running_requests),
    ("context_len", "Tokens that a request may have.", lambda ready: ready.context_length),
    ("page_size", "Tokens of a page.", lambda ready: ready.page_size),
    ("num_pages", "Pages of the KV pool.", lambda ready: ready.num_pages),
)


class EngineFigures:
    """A ``Source``: the newest report of every engine, and its steps one by one.

    Args:
        labels: on every sample.
        ranked: whether the engines are told apart by ``dp_rank``.
        clock: seconds.
    """

    def __init__(self, labels: Labels, *, ranked: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._labels = {**labels, "tp_rank": "0", "pp_rank": "0"}
        self._ranked = ranked
        self._clock = clock
        self._heard_s: dict[int, float] = {}
        self._alive: dict[int, StepStats] = {}
        self._totals: dict[tuple[int, Figure], float] = {}
        self._before: dict[tuple[int, Figure], float] = {}
        """What was counted in earlier lives."""
        self._newest: dict[int, StepStats] = {}
        self._ready: dict[int, Ready] = {}
        self._out: set[int] = set()
        """Engines that have died and were not ready again since."""
        self._over = False
        self._steps = {0: _Steps()}
        self._compiled = Counts(("family", "variant", "origin"))
        self._compile_s = Histograms(("origin",), COMPILE_S, [("cache",), ("compiler",)])

    def ready(self, ready: Ready) -> None:
        """An engine serves; until its first step it is idle."""
        replica = ready.replica
        if replica in self._out:
            self._out.discard(replica)
            self._before |= {(replica, figure): total for figure, total in self._counts(replica)}
            del self._newest[replica]
        self._ready[replica] = ready
        self._steps_of(replica)
        self._alive.setdefault(replica, _idle(ready))
        self._newest.setdefault(replica, _idle(ready))

    def step(self, stats: StepStats) -> None:
        """Take an engine's newest figures."""
        self._newest[stats.replica] = stats
        self._heard_s[stats.replica] = self._clock()
        if not self._over and stats.replica not in self._out:
            self._alive[stats.replica] = stats
        if stats.family:
            self._steps_of(stats.replica).step(stats)

    def times(self, times: StepTimes) -> None:
        """Take the times of a step."""
        self._steps_of(times.replica).times(times)

    def compiled(self, compiled: Compiled) -> None:
        """Count a program."""
        origin = "cache" if compiled.from_cache else "compiler"
        self._compiled.add((compiled.family, compiled.variant, origin))
        self._compile_s.observe((origin,), compiled.seconds)

    def gone(self, replica: int) -> None:
        """An engine has ended: its gauges go until it is ready again; what it did stays, and what it does is added."""
        if replica in self._newest:
            self._out.add(replica)
        self._alive.pop(replica, None)
        self._ready.pop(replica, None)

    def over(self) -> None:
        """The engines have ended for good."""
        self._over = True
        self._alive.clear()
        self._ready.clear()

    def families(self) -> Iterator[Family]:
        """See ``Source``."""
        yield from _grouped("gauge", GAUGES, self._gauge)
        yield from _grouped("counter", COUNTERS, self._counter)
        yield from self._constants()
        yield from _step_families((self._of(replica), steps) for replica, steps in sorted(self._steps.items()))
        yield Family(
            "compiled_programs", "counter", "Programs that became ready.", self._compiled.samples(self._labels)
        )
        yield Family("compile_seconds", "histogram", "Time to make one ready.", self._compile_s.samples(self._labels))

    def _steps_of(self, replica: int) -> "_Steps":
        return self._steps.setdefault(replica, _Steps())

    def _gauge(self, figure: Figure) -> Iterator[Sample]:
        now_s = self._clock()
        for replica, stats in self._alive.items():
            silent = figure.rate and now_s - self._heard_s.get(replica, now_s) > SILENT_S
            value = 0.0 if silent else figure.of(stats)
            if value is not None:
                yield Sample({**self._of(replica), **dict(figure.labels)}, value)

    def _counter(self, figure: Figure) -> Iterator[Sample]:
        for replica in self._newest:
            for _, total in self._counts(replica, (figure,)):
                yield Sample({**self._of(replica), **dict(figure.labels)}, total)

    def _counts(self, replica: int, figures: Sequence[Figure] = COUNTERS) -> Iterator[tuple[Figure, float]]:
        """Totals over all lives of an engine; none of them ever falls."""
        for figure in figures:
            value = figure.of(self._newest[replica])
            if value is not None:
                key = replica, figure
                total = max(self._before.get(key, 0) + value, self._totals.get(key, 0))
                self._totals[key] = total
                yield figure, total

    def _constants(self) -> Iterator[Family]:
        engines = sorted(self._ready.items())
        if not engines:
            return
        for stem, text, of in CONSTANTS:
            yield Family(stem, "gauge", text, [Sample(self._of(replica), of(ready)) for replica, ready in engines])
        sizes = [
            Sample({**self._of(replica), "page_size": str(ready.page_size), "num_pages": str(ready.num_pages)}, 1)
            for replica, ready in engines
        ]
        yield Family("cache_config_info", "gauge", "The KV cache's sizes.", sizes)

    def _of(self, replica: int) -> Labels:
        return {**self._labels, "dp_rank": str(replica)} if self._ranked else self._labels


class _Steps:
    """Steps by family and bucket."""

    def __init__(self) -> None:
        names = ("family", "bucket")
        self._tokens = Counts(names)
        self._padding = Counts(names)
        self._sizes = Histograms((), STEP_TOKENS, [()])
        self._step_s = Histograms(names, STEP_S)
        self._host_s = Histograms((), HOST_S, [()])
        self._phases = Counts(("phase",), [(phase,) for phase in _PHASES])

    def step(self, stats: StepStats) -> None:
        key = stats.family, str(stats.size)
        self._tokens.add(key, stats.step_tokens)
        self._padding.add(key, stats.size - stats.step_tokens)
        self._sizes.observe((), stats.step_tokens)

    def times(self, times: StepTimes) -> None:
        self._step_s.observe((times.family, str(times.size)), times.step_s)
        host = (times.receive_s, times.plan_s, times.launch_s, times.commit_s, times.emit_s)
        self._host_s.observe((), sum(host))
        for phase, seconds in zip(_PHASES, host, strict=True):
            self._phases.add((phase,), seconds)

    def families(self, labels: Labels) -> Iterator[Family]:
        yield Family("bucket_tokens", "counter", "Tokens computed, by bucket.", self._tokens.samples(labels))
        yield Family("bucket_padded_tokens", "counter", "Padding computed, by bucket.", self._padding.samples(labels))
        yield Family("iteration_tokens", "histogram", "Tokens of a step.", self._sizes.samples(labels))
        yield Family("step_duration_seconds", "histogram", "Time of a step, by bucket.", self._step_s.samples(labels))
        yield Family("step_host_seconds", "histogram", "The host's work for a step.", self._host_s.samples(labels))
        yield Family("host_phase_seconds", "counter", "The host's work, by phase.", self._phases.samples(labels))


_PHASES: Final = ("receive", "plan", "launch", "commit", "emit")


def _step_families(engines: Iterable[tuple[Labels, _Steps]]) -> Iterator[Family]:
    """The families of several engines, each once."""
    found: dict[str, Family] = {}
    for labels, steps in engines:
        for family in steps.families(labels):
            same = found.get(family.stem)
            found[family.stem] = family if same is None else replace(same, samples=[*same.samples, *family.samples])
    yield from found.values()


def _grouped(kind: Kind, figures: Iterable[Figure], samples: Callable[[Figure], Iterable[Sample]]) -> Iterator[Family]:
    found: dict[str, tuple[str, list[Sample]]] = {}
    for figure in figures:
        found.setdefault(figure.stem, (figure.text, []))[1].extend(samples(figure))
    for stem, (text, some) in found.items():
        if some:
            yield Family(stem, kind, text, some)


def _share(stats: StepStats) -> float:
    return min(1.0, stats.tokens_used / stats.tokens_total) if stats.tokens_total else 0.0


def _from_device(stats: StepStats) -> int:
    tiers = stats.tiers
    return stats.cached_tokens - (tiers.cached_host + tiers.cached_storage if tiers else 0)


def _evictable(stats: StepStats) -> int:
    """All that is neither free nor in use; rows in flight of requests just answered may still hold some of it."""
    return max(0, stats.tokens_total - stats.tokens_used - stats.tokens_free)


def _idle(ready: Ready) -> StepStats:
    pool = ready.max_total_num_tokens
    zeros: Mapping[str, int] = dict.fromkeys(_REQUIRED, 0)
    unhurt = dict.fromkeys(LEAK_POOLS, 0)
    return msgspec.convert({**zeros, "tokens_total": pool, "tokens_free": pool, "leaks": unhurt}, StepStats)


_REQUIRED: Final = tuple(field.name for field in msgspec.structs.fields(StepStats) if field.required)
