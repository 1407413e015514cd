"""What a step takes of one device: operations, bytes of its memory, bytes that shards add up. Pure arithmetic.

All is linear in tokens and in pairs of a token and one that it attends to; what is left out is small (activations that
stay in caches, norms). ``model.counted_costs`` has the same figures from compiled programs.
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from configs.schema import Parallel, StageFacts
from configs.stages import stage_layers
from model.spec import Dtype, Experts, ModelSpec
from model.vocabulary import padded_vocab
from sharding.heads import HeadLayout, head_layout

FLOAT32 = 4


@dataclass(slots=True, frozen=True)
class Work:
    """What one device does."""

    flops: float = 0.0
    num_bytes: float = 0.0
    """Read from its memory and written to it."""
    summed_bytes: float = 0.0
    """Of the arrays that all shards add up."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.num_bytes + other.num_bytes, self.summed_bytes + other.summed_bytes)

    def __mul__(self, times: float) -> "Work":
        return Work(self.flops * times, self.num_bytes * times, self.summed_bytes * times)


class Line(NamedTuple):
    """Work that grows with the tokens of a step."""

    fixed: Work
    each: Work

    def at(self, tokens: float) -> Work:
        """The work of a step of ``tokens``."""
        return self.fixed + self.each * tokens


class ExpertWork(NamedTuple):
    """The experts of one layer on one device."""

    spec: Experts
    here: int
    """Experts that the device holds."""
    one: Work
    """To read one expert, whoever takes it."""
    pair: Work
    """One token through one expert."""

    def at(self, tokens: float) -> Work:
        """A step of ``tokens`` that go where they like: every expert that any of them takes is read once."""
        taken = 1 - (1 - self.spec.per_token / self.spec.count) ** tokens
        pairs = tokens * self.spec.per_token * self.here / self.spec.count
        return self.one * (self.here * taken) + self.pair * pairs


class LayerWork(NamedTuple):
    """One layer."""

    line: Line
    """Projections, dense feed-forward, router."""
    pair: Work
    """One token attending to one, ``num_bytes`` where no other token of the step attends to that."""
    window: int
    """Tokens that are seen; 0 means all."""
    experts: ExpertWork | None

    def seen(self, context: float) -> float:
        """Of ``context`` tokens those that the last one sees."""
        return min(context, self.window) if self.window else context


class Kind(NamedTuple):
    """What tells two layers of a model apart."""

    window: int
    sparse: bool


@dataclass(slots=True, frozen=True)
class StageCosts:
    """One device of one pipeline stage."""

    layers: tuple[tuple[int, LayerWork], ...]
    """How many layers there are of each kind."""
    ends: Line
    """Embedding, head and sampling of each row; nothing where the head is another stage's."""

    def decode(self, rows: float, context: float) -> Work:
        """A step of ``rows`` requests, each behind ``context`` tokens of its own."""
        total = self.ends.at(rows)
        for count, layer in self.layers:
            total += (self._tokens(layer, rows) + layer.pair * (rows * layer.seen(context))) * count
        return total

    def prefill(self, tokens: int) -> Work:
        """A step that is the first ``tokens`` of one prompt."""
        total = self.ends.at(1)
        for count, layer in self.layers:
            seen = layer.seen(tokens)
            pairs = tokens * seen - seen * (seen - 1) / 2
            attended = Work(layer.pair.flops * pairs, layer.pair.num_bytes * tokens)
            total += (self._tokens(layer, tokens) + attended) * count
        return total

    @staticmethod
    def _tokens(layer: LayerWork, tokens: float) -> Work:
        work = layer.line.at(tokens)
        return work if layer.experts is None else work + layer.experts.at(tokens)


StepCosts = tuple[StageCosts, ...]
"""By stage."""


class Counts(Protocol):
    """Where the costs of layers and ends are from."""

    def layer(self, kind: Kind) -> LayerWork:
        """A layer of this kind."""
        ...

    def ends(self) -> Line:
        """Embedding, head and sampling."""
        ...


def costs_of(spec: ModelSpec, stages: int, counts: Counts) -> StepCosts:
    """The costs of every stage; the embedding is counted with the head."""
    layers = {kind: counts.layer(kind) for kind in sorted({kind_of(spec, layer) for layer in range(spec.num_layers)})}
    return tuple(
        StageCosts(
            tuple((count, layers[kind]) for kind, count in kinds_of(spec, part).items()),
            counts.ends() if part.stop == spec.num_layers else Line(Work(), Work()),
        )
        for part in stage_layers(spec.num_layers, stages)
    )


def kind_of(spec: ModelSpec, layer: int) -> Kind:
    """The kind of one layer."""
    return Kind(spec.window(layer), layer in spec.sparse_layers)


def kinds_of(spec: ModelSpec, layers: range) -> Counter[Kind]:
    """How many of ``layers`` there are of each kind."""
    return Counter(kind_of(spec, layer) for layer in layers)


def costs_by_formula(spec: ModelSpec, parallel: Parallel, dtype: Dtype) -> StepCosts:
    """The costs as a hand writes them down: each weight is read once, and gives two operations a token."""
    return costs_of(spec, parallel.stages, Shares(spec, parallel, dtype))


@dataclass(slots=True, frozen=True)
class Shares:
    """What of a model one device holds."""

    spec: ModelSpec
    parallel: Parallel
    dtype: Dtype

    @property
    def element(self) -> int:
        """Bytes of an element of a matrix, and of keys and values."""
        return 2 if self.dtype == "bfloat16" else FLOAT32

    @property
    def layout(self) -> HeadLayout:
        """Heads over all shards."""
        return head_layout(self.spec.num_heads, self.spec.num_kv_heads, self.parallel.shards)

    def attention(self) -> int:
        """Elements of the projections of one layer."""
        columns = 2 * self.layout.num_heads + 2 * self.layout.num_kv_heads
        return self.spec.hidden_size * columns * self.spec.head_dim // self.parallel.shards

    def dense(self, width: int) -> int:
        """Elements of a feed-forward of this inner size."""
        return 3 * self.spec.hidden_size * width // self.parallel.shards

    def expert(self, experts: Experts) -> int:
        """Elements of one expert."""
        return 3 * self.spec.hidden_size * experts.width // self.parallel.tensor

    def vectors(self, kind: Kind) -> int:
        """Bytes of norms, biases, router and the gate of a shared expert: float32."""
        spec, layout = self.spec, self.layout
        elements = spec.hidden_size * (4 if spec.post_norms else 2) + (2 * spec.head_dim if spec.qk_norm else 0)
        if spec.qkv_bias:
            elements += (layout.num_heads + 2 * layout.num_kv_heads) * spec.head_dim // self.parallel.shards
        if kind.sparse and spec.experts is not None:
            elements += spec.hidden_size * (spec.experts.count + (1 if spec.experts.shared_width else 0))
        return elements * FLOAT32

    def matrices(self, kind: Kind) -> int:
        """Elements of a layer's matrices without its experts."""
        experts = self.spec.experts
        if kind.sparse and experts is not None:
            return self.attention() + self.dense(experts.shared_width)
        return self.attention() + self.dense(self.spec.intermediate_size)

    def layer(self, kind: Kind) -> LayerWork:
        """One layer; two sums of a token's hidden state over the shards."""
        spec, layout, experts = self.spec, self.layout, self.spec.experts
        matrices, summed = self.matrices(kind), self.summed() * 2
        router = spec.hidden_size * experts.count if kind.sparse and experts is not None else 0
        line = Line(
            Work(0, matrices * self.element + self.vectors(kind)),
            Work(2 * (matrices + router), self.kept_bytes(), summed),
        )
        heads = layout.num_heads // self.parallel.shards
        pair = Work(4 * heads * spec.head_dim, self.kept_bytes())
        work = None
        if kind.sparse and experts is not None:
            size = self.expert(experts)
            work = ExpertWork(
                experts, experts.count // self.parallel.expert, Work(0, size * self.element), Work(2 * size)
            )
        return LayerWork(line, pair, kind.window, work)

    def kept_bytes(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.layout.num_kv_heads // self.parallel.shards * self.spec.head_dim * self.element

    def summed(self) -> int:
        """Bytes of a token's hidden state that the shards add up; float32."""
        return self.spec.hidden_size * FLOAT32 if self.parallel.shards > 1 else 0

    def table(self) -> int:
        """Elements of the embedding, and of the head."""
        shards = self.parallel.shards
        return padded_vocab(self.spec.vocab_size, shards) * self.spec.hidden_size // shards

    def ends(self) -> Line:
        """The head is read whole, the embedding a row a token."""
        row = self.spec.hidden_size * self.element
        return Line(Work(0, self.table() * self.element), Work(2 * self.table(), row, self.summed()))

    def stage_bytes(self, layers: range) -> int:
        """Bytes of all leaves of the stage that has ``layers``, on one device."""
        spec, total = self.spec, 0
        for kind, count in kinds_of(spec, layers).items():
            experts = spec.experts
            held = experts.count // self.parallel.expert * self.expert(experts) if kind.sparse and experts else 0
            total += count * ((self.matrices(kind) + held) * self.element + self.vectors(kind))
        total += self.table() * self.element if layers.start == 0 else 0
        if layers.stop < spec.num_layers:
            return total
        tied = spec.tie_embeddings and layers.start == 0
        return total + spec.hidden_size * FLOAT32 + (0 if tied else self.table() * self.element)

    def stages(self) -> tuple[StageFacts, ...]:
        """What a server would know of each stage."""
        return tuple(
            StageFacts(
                weight_bytes=self.stage_bytes(layers) * self.parallel.shards,
                num_layers=len(layers),
                sliding_layers=sum(bool(self.spec.window(layer)) for layer in layers),
            )
            for layers in stage_layers(self.spec.num_layers, self.parallel.stages)
        )
