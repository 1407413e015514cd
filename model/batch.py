"""One step's inputs as a single int32 buffer, and as the named arrays that a compiled step reads.

One buffer is one host-to-device copy; float32 fields travel as their bits.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model.interface import MAX_LOGIT_BIAS, MAX_STOP_IDS, Family, FullSampling, Shapes, StepInput, Variant
from model.sharing import GROUP_ROWS, find_groups, num_groups


@dataclass(slots=True, frozen=True)
class Program:
    """Name of one compiled step: a kind, a variant, a size."""

    family: Family
    variant: Variant
    size: int

    def __str__(self) -> str:
        return f"{self.family}/{self.variant}/{self.size}"


class Batch(NamedTuple):
    """The fields of ``StepInput`` as device arrays; see there for shapes."""

    num_decode: jax.Array
    tokens: jax.Array
    slots: jax.Array
    starts: jax.Array
    lengths: jax.Array
    offsets: jax.Array
    sample: jax.Array
    page_table: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    seed: jax.Array
    shared_rows: jax.Array | None = None
    shared_pages: jax.Array | None = None
    window_table: jax.Array | None = None
    """Page table of the window group, where there is one."""
    targets: jax.Array | None = None
    repetition: jax.Array | None = None
    frequency: jax.Array | None = None
    presence: jax.Array | None = None
    bias_ids: jax.Array | None = None
    bias: jax.Array | None = None
    banned_ids: jax.Array | None = None
    bitmask: jax.Array | None = None
    top_logprobs: jax.Array | None = None


def decode_rows(program: Program, shapes: Shapes) -> int:
    """Rows of the program's decode part."""
    rows = shapes.rows(program.family, program.size)
    return {Family.DECODE: rows, Family.SCORE: 0, Family.MIXED: rows - shapes.max_pieces}[program.family]


FLOATS = frozenset({"temperature", "top_p", "min_p", "repetition", "frequency", "presence", "bias"})


@cache
def layout(program: Program, shapes: Shapes) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape of each field in the buffer of ``program``, in order."""
    rows, tokens = shapes.rows(program.family, program.size), program.size
    groups = num_groups(decode_rows(program, shapes))
    fields: list[tuple[str, tuple[int, ...]]] = [
        ("num_decode", ()),
        ("tokens", (tokens,)),
        *((name, (rows,)) for name in ("slots", "starts", "lengths", "offsets", "sample")),
        ("page_table", (rows, shapes.pages_per_row)),
        *((name, (rows,)) for name in ("temperature", "top_k", "top_p", "min_p", "seed")),
    ]
    if groups:
        fields += [("shared_rows", (groups, GROUP_ROWS)), ("shared_pages", (groups,))]
    if shapes.window:
        fields.append(("window_table", (rows, shapes.pages_per_row)))
    if program.family is Family.SCORE:
        fields.append(("targets", (tokens,)))
    elif program.variant is Variant.FULL:
        fields += [(name, (rows,)) for name in ("repetition", "frequency", "presence")]
        fields += [(name, (rows, MAX_LOGIT_BIAS)) for name in ("bias_ids", "bias")]
        fields += [("banned_ids", (rows, 2 * MAX_STOP_IDS)), ("bitmask", (rows, -(-shapes.vocab_size // 32)))]
        fields.append(("top_logprobs", (rows,)))
    return tuple(fields)


def buffer_size(program: Program, shapes: Shapes) -> int:
    """Length of the buffer of ``program`` in int32 words."""
    return sum(int(np.prod(shape)) for _, shape in layout(program, shapes))


def pack(step: StepInput, shapes: Shapes) -> np.ndarray:
    """The step's buffer, int32."""
    values: list[np.ndarray] = [
        np.array([step.num_decode], np.int32),
        step.tokens,
        step.slots,
        step.starts,
        step.lengths,
        step.offsets,
        step.sample,
        step.page_tables[0],
        step.sampling.temperature,
        step.sampling.top_k,
        step.sampling.top_p,
        step.sampling.min_p,
        step.sampling.seed,
    ]
    program = Program(step.family, step.variant, step.size)
    values += find_groups(step, decode_rows(program, shapes), shapes.page_size)
    values += step.page_tables[1:]
    if step.targets is not None:
        values.append(step.targets)
    elif step.full is not None:
        values += full_values(step.full)
    buffer = np.empty(buffer_size(program, shapes), np.int32)
    at = 0
    for value in values:
        words = value.ravel() if value.dtype == np.bool_ else value.ravel().view(np.int32)
        buffer[at : at + words.size] = words
        at += words.size
    assert at == buffer.size, f"a {step.family} step of {step.size} fills {at} of {buffer.size} words"
    return buffer


def full_values(full: FullSampling) -> list[np.ndarray]:
    """The fields of the full variant, in the buffer's order."""
    return [
        full.repetition,
        full.frequency,
        full.presence,
        full.bias_ids,
        full.bias,
        full.banned_ids,
        full.bitmask,
        full.top_logprobs,
    ]


def unpack(buffer: jax.Array, program: Program, shapes: Shapes) -> Batch:
    """Named arrays out of a buffer; runs inside a compiled step."""
    fields: dict[str, jax.Array] = {}
    at = 0
    for name, shape in layout(program, shapes):
        size = int(np.prod(shape))
        words = buffer[at : at + size].reshape(shape)
        if name in FLOATS:
            words = jax.lax.bitcast_convert_type(words, jnp.float32)
        elif name == "sample":
            words = words.astype(bool)
        fields[name] = words
        at += size
    return Batch(**fields)
