"""What crosses between ``scheduler/`` and ``model/``: numpy values and one protocol, no jax.

A step is one compiled program run once. ``decode`` carries one token for each of R rows; ``mixed``
carries up to T tokens on one axis: decode rows first, then at most ``max_pieces`` prompt pieces,
each beginning at a multiple of ``tile``; ``score`` carries one prompt piece and yields the log
probability of every token in it. Page 0 and slot 0 are targets for padding and belong to nobody.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NewType, Protocol

import numpy as np
from numpy.typing import NDArray

PageId = NewType("PageId", int)
SlotId = NewType("SlotId", int)

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]

MAX_LOGIT_BIAS = 300
MAX_STOP_IDS = 8
MAX_TOP_LOGPROBS = 20
FROM_DEVICE = -1
"""As a token id: take the slot's last sampled token, which has not left the device yet."""


class Family(StrEnum):
    """Kinds of compiled step."""

    DECODE = "decode"
    MIXED = "mixed"
    SCORE = "score"


class Variant(StrEnum):
    """``lean``: temperature, top-k, top-p and min-p; ``full``: all the rest too. Score steps are lean."""

    LEAN = "lean"
    FULL = "full"


@dataclass(slots=True, frozen=True)
class Shapes:
    """The ladders of padded sizes, as the runner offers them. Plain integers."""

    decode_rows: tuple[int, ...]
    """R of each ``decode`` program, ascending; the last is at least a step's share of ``max_rows``."""
    mixed_tokens: tuple[int, ...]
    """T of each ``mixed`` program, ascending; the last is the token budget of a step."""
    score_tokens: int
    """T of the ``score`` program."""
    max_rows: int
    """Requests that may run at once. A mixed step has min(max_rows, T) decode rows."""
    max_pieces: int
    """Prompt pieces of one mixed step."""
    tile: int
    """Prompt pieces begin at multiples of this on the token axis; it divides every T."""
    page_size: int
    pages_per_row: int
    """Width of the page table: pages of a request as long as the context."""
    vocab_size: int
    window: int = 0
    """Tokens that layers with a sliding window see, where these have a page group of their own; 0 where not."""

    @property
    def page_groups(self) -> int:
        """Page tables of a step: group 0 is that of layers that see everything, group 1 that of sliding ones."""
        return 2 if self.window else 1

    def rows(self, family: Family, size: int) -> int:
        """Number of rows of the program ``family`` of ``size`` (R for decode, T otherwise)."""
        if family is Family.DECODE:
            return size
        if family is Family.SCORE:
            return 1
        return min(self.max_rows, size) + self.max_pieces


@dataclass(slots=True, frozen=True)
class CountRow:
    """Token counts that rebuild one slot's penalty state at admission.

    ``ids`` are distinct; ``prompt`` and ``output`` say how often each occurs there.
    """

    slot: int
    ids: Int32
    prompt: Int32
    output: Int32


@dataclass(slots=True, frozen=True)
class Sampling:
    """Sampling parameters by row, padded to R rows; padding rows hold neutral values."""

    temperature: Float32
    """float32[R]; 0 means the exact argmax."""
    top_k: Int32
    """int32[R]; 0 means off."""
    top_p: Float32
    min_p: Float32
    seed: NDArray[np.uint32]
    """uint32[R]; with the position of the sampled token it determines the draw."""


@dataclass(slots=True, frozen=True)
class FullSampling:
    """What only the ``full`` variant reads, padded to R rows; neutral where a row does not ask."""

    repetition: Float32
    frequency: Float32
    presence: Float32
    bias_ids: Int32
    """int32[R, MAX_LOGIT_BIAS]; -1 is padding."""
    bias: Float32
    """float32[R, MAX_LOGIT_BIAS]."""
    banned_ids: Int32
    """int32[R, 2 * MAX_STOP_IDS]: ids masked now (EOS and stop ids below ``min_new_tokens``); -1 is padding."""
    bitmask: Int32
    """int32[R, ceil(vocab / 32)] of allowed tokens, bit i of word w being token 32 w + i; -1 allows all."""
    top_logprobs: Int32
    """int32[R]; how many best tokens the row wants (0 to MAX_TOP_LOGPROBS); the chosen one is always scored."""


@dataclass(slots=True, frozen=True)
class StepInput:
    """Everything one step needs, padded to a program of the ladder.

    Row r < ``num_decode`` of a mixed step has its single token at index r of the token axis; piece p is
    row ``min(max_rows, T) + p``. In a decode step row r has token r. In a score step row 0 is the piece.
    """

    step: int
    family: Family
    variant: Variant
    size: int
    """R of a decode program, T of the others."""
    num_decode: int
    num_tokens: int
    """Tokens that are not padding."""
    tokens: Int32
    """int32[T]; FROM_DEVICE takes ``last_token[slot]``; padding is 0."""
    slots: Int32
    """int32[R]; 0 is padding."""
    starts: Int32
    """int32[R]: tokens of the row whose KV is in the pool before this step."""
    lengths: Int32
    """int32[R]: tokens of the row in this step; 0 is padding."""
    offsets: Int32
    """int32[R]: index of the row's first token on the token axis."""
    sample: NDArray[np.bool_]
    """bool[R]: whether the row's last token yields a sampled one."""
    page_tables: tuple[Int32, ...]
    """By page group, int32[R, pages_per_row]; 0 is padding."""
    sampling: Sampling
    full: FullSampling | None
    """Given exactly when ``variant`` is ``full``."""
    counts: tuple[CountRow, ...] = ()
    """Rows whose penalty state is rebuilt before the step; ``full`` only."""
    targets: Int32 | None = None
    """int32[T], ``score`` only: the token that follows each position; -1 is padding."""


@dataclass(slots=True, frozen=True)
class StepOutput:
    """What a step gives back, by row of its ``StepInput``; rows that do not sample hold garbage."""

    tokens: Int32
    """int32[R]."""
    logprobs: Float32 | None = None
    """float32[R]: of the chosen token, from the raw distribution (``full``); [T] of the targets (``score``)."""
    top_ids: Int32 | None = None
    """int32[R or T, MAX_TOP_LOGPROBS], best first."""
    top_logprobs: Float32 | None = None


class StepHandle(Protocol):
    """A launched step."""

    def ready(self) -> bool:
        """Whether ``result`` would return at once. Never blocks."""
        ...

    def result(self) -> StepOutput:
        """Wait for the step and copy its output to the host. The only blocking read of the engine."""
        ...


@dataclass(slots=True, frozen=True)
class CompileReport:
    """One program that became ready."""

    family: Family
    variant: Variant
    size: int
    seconds: float
    from_cache: bool


class CopyHandle(Protocol):
    """Pages on their way from the device to host memory."""

    def result(self) -> None:
        """Wait until they are there. May be called from another thread than the runner's, once."""
        ...


class HostPages(Protocol):
    """Pages in host memory, numbered from 1, and their way to the device and back."""

    @property
    def fingerprint(self) -> bytes:
        """What the bytes of a page depend on beside its tokens: model, weights, dtype, layout."""
        ...

    def save(self, pages: Sequence[PageId], host_pages: Sequence[PageId]) -> CopyHandle:
        """Begin to copy pages of the device, as the steps launched so far leave them. Never blocks on the device."""
        ...

    def load(self, host_pages: Sequence[PageId], pages: Sequence[PageId]) -> None:
        """Copy host pages to the device, before any step launched later. Does not wait for the device."""
        ...

    def read(self, host_page: PageId) -> bytes:
        """The bytes of a host page; from any thread."""
        ...

    def write(self, host_page: PageId, data: bytes) -> bool:
        """Fill a host page that nobody else uses; False if ``data`` is no page. From any thread."""
        ...


class ExpertHost(Protocol):
    """The experts of a mixture, as operators see them. Used on the engine's thread; waits for the device."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the layers that have experts."""
        ...

    def counts(self) -> NDArray[np.uint32]:
        """[layers, experts]: tokens that each expert took, modulo 2**32.

        Only what is added between two calls means something, and not if experts were placed anew between them.
        """
        ...

    def imbalance(self, loads: NDArray[np.int64]) -> list[float]:
        """Load of the busiest device as a multiple of the mean, by layer; ``loads`` are [layers, experts]."""
        ...

    def rebalance(self, loads: NDArray[np.int64]) -> None:
        """Place the experts anew so that ``loads`` would fall evenly on the devices; the steps after this run so."""
        ...


class Runner(Protocol):
    """The model as the scheduler sees it."""

    @property
    def shapes(self) -> Shapes:
        """The ladders."""
        ...

    def launch(self, step: StepInput) -> StepHandle:
        """Start one step. Never blocks on the device."""
        ...

    @property
    def host(self) -> HostPages | None:
        """Pages in host memory; None without a host tier."""
        ...

    def compiled_late(self) -> int:
        """Number of programs that had to be compiled on the engine's thread after ready."""
        ...


@dataclass(slots=True, frozen=True)
class ProfileOptions:
    """What ``/start_profile`` asks for (documents: M-10, O-32). Steps are counted as ``StepInput.step`` counts them."""

    output_dir: str | None
    """None: the profiler's own folder."""
    start_step: int | None
    """At least the next step; None: the next."""
    num_steps: int | None
    """From the start step on; by stage: of each stage. None: until stopped."""
    activities: tuple[str, ...]
    """Of CPU, GPU (any accelerator) and MEM (a snapshot of the device's memory at the end)."""
    with_stack: bool
    """Whether Python's calls are traced too."""
    record_shapes: bool
    """Whether the compiled programs, with the shapes of their operations, are kept in the trace."""
    profile_by_stage: bool
    """Whether prefill and decode steps are traced apart."""
    profile_stages: tuple[str, ...]
    """Of prefill and decode, those that are wanted by stage."""
    profile_id: str | None
    """Begins the names of what is written; None: the time of day."""
    wait_steps: int
    """Before each trace."""
    warmup_steps: int
    """Traced before each trace, and thrown away: the first steps after a profiler's start are slow."""
    active_steps: int | None
    """Length of each trace; None: there is no schedule, and ``num_steps`` counts."""
    repeat: int
    """Traces of a schedule."""


class ProfileRefused(Exception):
    """A profile cannot be started or stopped now; its text is the answer."""


class Profiler(Protocol):
    """Traces of steps, as the scheduler sees them. Used on the engine's thread."""

    def start(self, options: ProfileOptions) -> Path:
        """Begin now, or with the step that is asked for; gives the folder of the traces.

        Raises:
            ProfileRefused: one is in progress, or nothing can be written.
        """
        ...

    def stop(self) -> None:
        """End it and write what was traced.

        Raises:
            ProfileRefused: none is in progress, or nothing can be written.
        """
        ...

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Name what the host does inside, while a trace runs."""
        ...


CompileListener = Callable[[CompileReport], None]
