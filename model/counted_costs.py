"""The costs of a step as XLA counts them in the programs that would run, for shapes alone: nothing is allocated.

Each device computes one shard of the model; that shard, as a model of its own, is what is lowered. XLA counts the body
of a loop once, however often it turns: programs of one and of two layers, of several sizes, tell apart what belongs to
a layer, to a token and to a turn. Bytes are taken where they are a limit, of the weights; of activations XLA counts
every operation's operands and results, though most never leave a cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import jax
import jax.numpy as jnp

from configs.schema import Parallel
from model.attention import BLOCK_TOKENS
from model.batch import Program
from model.device_state import state_shapes
from model.interface import Family, Variant
from model.ladders import make_shapes
from model.layers.grouped import gated
from model.recipe import Recipe
from model.registry import blueprint
from model.sharing import LEAST_ROWS
from model.spec import Dtype, Experts, ModelSpec
from model.step_costs import Kind, LayerWork, Line, Shares, StepCosts, Work, costs_of, kind_of
from model.vocabulary import padded_vocab
from sharding.mesh import build_mesh

FEW, MANY, MORE = ROWS = (2, 256, 512)
"""Rows of the programs: too few for groups of rows; and what grows with rows, between the other two."""
PAGES: Final = 4
CONTEXT: Final = 1024
NARROW: Final = 1
"""Width of experts whose loop is to count for next to nothing."""
TILE: Final = 32

assert FEW < LEAST_ROWS < MANY, "groups of rows are in both larger programs and not in the smallest"


def count_costs(spec: ModelSpec, parallel: Parallel, dtype: Dtype) -> StepCosts:
    """Lower a few programs of a layer or two and read what XLA counts in them; takes seconds."""
    return costs_of(spec, parallel.stages, LoweredCounts(spec, parallel, dtype))


@dataclass(slots=True, frozen=True)
class LoweredCounts:
    """Costs of one model's layers on one mesh."""

    spec: ModelSpec
    parallel: Parallel
    dtype: Dtype

    def layer(self, kind: Kind) -> LayerWork:
        """One layer."""
        known = Shares(self.spec, self.parallel, self.dtype).layer(kind)
        wide, narrow = (self.a_layer(kind, FEW, span) for span in (2 * BLOCK_TOKENS, BLOCK_TOKENS))
        pair = (wide + narrow * -1) * (1 / (FEW * BLOCK_TOKENS))
        turns = {rows: pair * (rows * BLOCK_TOKENS) for rows in ROWS}
        line = line_through({rows: self.a_layer(kind, rows, BLOCK_TOKENS) + turns[rows] * -1 for rows in ROWS})
        experts = known.experts
        if experts is not None:
            one, each = self.expert(experts.spec)
            experts = experts._replace(one=Work(0, one.num_bytes), pair=Work(each.flops))
        return LayerWork(limits_of(line, known.line), Work(pair.flops, known.pair.num_bytes), kind.window, experts)

    def ends(self) -> Line:
        """What a model without layers would take."""
        kind, known = kind_of(self.spec, 0), Shares(self.spec, self.parallel, self.dtype).ends()
        without = {
            rows: self.step(kind, rows, 1, BLOCK_TOKENS) + self.a_layer(kind, rows, BLOCK_TOKENS) * -1 for rows in ROWS
        }
        return limits_of(line_through(without), known)

    def a_layer(self, kind: Kind, rows: int, page_size: int) -> Work:
        """What the second layer adds."""
        return self.step(kind, rows, 2, page_size) + self.step(kind, rows, 1, page_size) * -1

    def step(self, kind: Kind, rows: int, num_layers: int, page_size: int) -> Work:
        """A decode step of one shard, whose attention turns once over ``page_size`` tokens."""
        return counted(one_shard(self.spec, kind, num_layers + 1, self.parallel), self.dtype, rows, page_size)

    def expert(self, experts: Experts) -> Line:
        """One shard of one expert, for the rows that take it."""
        hidden, width = self.spec.hidden_size, experts.width // self.parallel.tensor

        def tile(rows: int) -> Work:
            shapes = ((rows, hidden), (hidden, 2 * width), (width, hidden))
            dtypes = (jnp.float32, self.dtype, self.dtype)
            return work_of(jax.jit(gated).lower(*map(jax.ShapeDtypeStruct, shapes, dtypes)))

        return line_through({FEW: tile(FEW), MANY: tile(TILE), MORE: tile(TILE + MORE - MANY)})


@lru_cache(maxsize=64)
def counted(spec: ModelSpec, dtype: Dtype, rows: int, page_size: int) -> Work:
    """A decode step as XLA counts it, without the embedding and the first layer: of the table it would count all."""
    model = blueprint(spec, build_mesh(Parallel()), dtype, layers=range(1, spec.num_layers))
    shapes = make_shapes(rows, rows, page_size, CONTEXT, spec.vocab_size)
    recipe = Recipe(model, shapes, state_shapes(model, shapes, PAGES))
    return work_of(recipe.lower(Program(Family.DECODE, Variant.LEAN, rows)))


def line_through(at: Mapping[int, Work]) -> Line:
    """The straight line with the slope between the two larger sizes that begins at the smallest."""
    each = (at[MORE] + at[MANY] * -1) * (1 / (MORE - MANY))
    return Line(at[FEW] + each * -FEW, each)


def limits_of(counted: Line, known: Line) -> Line:
    """Operations as counted, and the bytes of the weights; the other bytes by formula."""
    return Line(Work(0, counted.fixed.num_bytes), replace(known.each, flops=counted.each.flops))


def one_shard(spec: ModelSpec, kind: Kind, num_layers: int, parallel: Parallel) -> ModelSpec:
    """What one device computes of a model of ``num_layers`` layers of one kind, without its experts' products."""
    shards, heads = parallel.shards, Shares(spec, parallel, "float32").layout
    experts = None
    if spec.experts is not None and kind.sparse:
        experts = replace(spec.experts, width=NARROW, shared_width=spec.experts.shared_width // shards, dense_layers=())
    return replace(
        spec,
        num_layers=num_layers,
        num_heads=heads.num_heads // shards,
        num_kv_heads=heads.num_kv_heads // shards,
        intermediate_size=spec.intermediate_size // shards,
        vocab_size=padded_vocab(spec.vocab_size, shards) // shards,
        experts=experts,
        sliding_layers=(bool(kind.window),) * num_layers if spec.sliding_layers else (),
    )


def work_of(lowered: jax.stages.Lowered) -> Work:
    """Operations and bytes as XLA counts them."""
    costs = lowered.cost_analysis() or {}
    return Work(costs["flops"], costs["bytes accessed"])
