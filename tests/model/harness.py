"""A model on its own: runs token sequences through the steps' forward pass and returns logits."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs.schema import Model, Parallel
from model.batch import Program, pack, unpack
from model.device_state import DeviceState, allocate, state_shapes
from model.interface import Family, Sampling, Shapes, StepInput, Variant
from model.loading.folder import model_folder
from model.loading.hf_config import read_config
from model.registry import Blueprint, blueprint
from model.spec import ModelSpec
from model.steps import Leaves, forward, logits_of
from model.weights import load_weights
from sharding.mesh import build_mesh

GOLDEN = Path(__file__).parents[1] / "golden"
PAGE_SIZE = 4
NUM_PAGES = 96


def tiny_shapes(vocab_size: int) -> Shapes:
    return Shapes(
        decode_rows=(2, 4),
        mixed_tokens=(32, 64),
        score_tokens=32,
        max_rows=4,
        max_pieces=2,
        tile=1,
        page_size=PAGE_SIZE,
        pages_per_row=32,
        vocab_size=vocab_size,
    )


@dataclass
class Bench:
    """One model with its weights and a pool; every row names its own pages."""

    model: Blueprint
    leaves: Leaves
    shapes: Shapes
    state: DeviceState
    options: Mapping[str, bool | int] = field(default_factory=dict)
    """The compiler's."""
    compiled: dict[tuple[Program, Shapes], Callable[..., tuple[DeviceState, jax.Array]]] = field(default_factory=dict)

    def logits(self, step: StepInput) -> np.ndarray:
        """Logits float32[T, vocab] of every entry of the token axis; keys and values are kept."""
        program, shapes = Program(step.family, step.variant, step.size), self.shapes

        def run(leaves: Leaves, state: DeviceState, buffer: jax.Array) -> tuple[DeviceState, jax.Array]:
            hidden, state = forward(program, self.model, shapes, leaves, state, unpack(buffer, program, shapes))
            return state, logits_of(self.model, leaves, hidden)

        jitted = jax.jit(run, donate_argnums=(1,), compiler_options=dict(self.options))
        compiled = self.compiled.setdefault((program, shapes), jitted)
        self.state, logits = compiled(self.leaves, self.state, jnp.asarray(pack(step, shapes)))
        return np.asarray(logits)[:, : self.model.spec.vocab_size]


def open_bench(
    folder: Path, tensor: int = 1, dtype: str = "float32", spec: ModelSpec | None = None, expert: int = 1
) -> Bench:
    source = model_folder(folder)
    spec = spec or read_config(source)
    mesh = build_mesh(Parallel(tensor=tensor, expert=expert))
    model = blueprint(spec, mesh, dtype)
    leaves = load_weights(Model(source=str(folder)), source, model, lambda done, total: None)
    shapes = tiny_shapes(spec.vocab_size)
    state = allocate(state_shapes(model, shapes, NUM_PAGES))
    return Bench(model, tuple(leaves[name] for name in model.leaves), shapes, state)


def tiny_bench(name: str, tensor: int = 1, dtype: str = "float32", expert: int = 1) -> Bench:
    """A golden model and an empty pool. Benches that are alike share their weights and their compiled programs."""
    bench = _opened(name, tensor, dtype, expert)
    return dataclasses.replace(bench, state=allocate(state_shapes(bench.model, bench.shapes, NUM_PAGES)))


@cache
def _opened(name: str, tensor: int, dtype: str, expert: int) -> Bench:
    return open_bench(GOLDEN / "models" / name, tensor, dtype, expert=expert)


@cache
def golden(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(GOLDEN / "logits" / f"{name}.npz") as file:
        return file["ids"], file["logits"]


def rows_of(shapes: Shapes, family: Family, size: int) -> dict[str, np.ndarray]:
    rows = shapes.rows(family, size)
    ints = {name: np.zeros(rows, np.int32) for name in ("slots", "starts", "lengths", "offsets")}
    return ints | {"sample": np.zeros(rows, bool), "table": np.zeros((rows, shapes.pages_per_row), np.int32)}


def neutral(rows: int) -> Sampling:
    return Sampling(
        np.zeros(rows, np.float32),
        np.zeros(rows, np.int32),
        np.ones(rows, np.float32),
        np.zeros(rows, np.float32),
        np.zeros(rows, np.uint32),
    )


@dataclass
class Row:
    """Tokens ``ids[start:end]`` of a request whose pages are ``pages``."""

    ids: np.ndarray
    start: int
    end: int
    pages: np.ndarray


def mixed(shapes: Shapes, size: int, decodes: list[Row], pieces: list[Row]) -> tuple[StepInput, list[slice]]:
    """A mixed step, and where each row's tokens lie: the decode rows', then the pieces'."""
    fields = rows_of(shapes, Family.MIXED, size)
    tokens = np.zeros(size, np.int32)
    first = shapes.rows(Family.MIXED, size) - shapes.max_pieces
    at = -(-len(decodes) // shapes.tile) * shapes.tile
    where = []
    for index, row in [*enumerate(decodes), *enumerate(pieces, first)]:
        offset = index if index < first else at
        place(fields, tokens, index, offset, row)
        where.append(slice(offset, offset + row.end - row.start))
        if index >= first:
            at += -(-(row.end - row.start) // shapes.tile) * shapes.tile
    return step_of(Family.MIXED, size, len(decodes), tokens, fields), where


def decode(shapes: Shapes, size: int, rows: list[Row]) -> StepInput:
    fields = rows_of(shapes, Family.DECODE, size)
    tokens = np.zeros(size, np.int32)
    for index, row in enumerate(rows):
        place(fields, tokens, index, index, row)
    return step_of(Family.DECODE, size, len(rows), tokens, fields)


def place(fields: dict[str, np.ndarray], tokens: np.ndarray, index: int, offset: int, row: Row) -> None:
    length = row.end - row.start
    tokens[offset : offset + length] = row.ids[row.start : row.end]
    fields["slots"][index] = index % 4 + 1
    fields["starts"][index], fields["lengths"][index], fields["offsets"][index] = row.start, length, offset
    fields["table"][index, : row.pages.size] = row.pages


def step_of(family: Family, size: int, num_decode: int, tokens: np.ndarray, f: dict[str, np.ndarray]) -> StepInput:
    return StepInput(
        step=1,
        family=family,
        variant=Variant.LEAN,
        size=size,
        num_decode=num_decode,
        num_tokens=int(f["lengths"].sum()),
        tokens=tokens,
        slots=f["slots"],
        starts=f["starts"],
        lengths=f["lengths"],
        offsets=f["offsets"],
        sample=f["sample"],
        page_tables=(f["table"],),
        sampling=neutral(f["slots"].size),
        full=None,
    )
