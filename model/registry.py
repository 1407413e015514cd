"""The model as the compiled steps hold it: a graph definition and named, flat, sharded leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import jax
from flax import nnx
from jax.sharding import Mesh

from configs.schema import ModelFacts, StageFacts
from configs.stages import stage_layers
from model.arch.gemma3 import Gemma3
from model.arch.llama import Llama
from model.arch.mixture import Mixture
from model.layers.grouped import grouped_product
from model.spec import Architecture, AttentionKind, Dtype, ExpertsKind, ModelSpec
from model.vocabulary import padded_vocab
from sharding.axes import named
from sharding.heads import HeadLayout, head_layout
from sharding.mesh import model_shards, stage_meshes

ARCHITECTURES: Final[Mapping[Architecture, type[Llama] | type[Gemma3] | type[Mixture]]] = MappingProxyType(
    {
        "llama": Llama,
        "mistral": Llama,
        "qwen2": Llama,
        "qwen3": Llama,
        "gemma3": Gemma3,
        "mixtral": Mixture,
        "qwen2_moe": Mixture,
        "qwen3_moe": Mixture,
    }
)


@dataclass(slots=True, frozen=True)
class Blueprint:
    """A model without its values."""

    spec: ModelSpec
    layout: HeadLayout
    mesh: Mesh
    dtype: Dtype
    attention: AttentionKind
    experts: ExpertsKind
    graph: nnx.GraphDef[Any]
    treedef: Any
    """``jax.tree_util.PyTreeDef``, which jax exports as a variable and not as a type."""
    leaves: dict[str, jax.ShapeDtypeStruct]
    """By name, in the order in which the treedef takes them; with shardings."""
    layers: range
    """Those that it has: all, or those of a pipeline stage."""

    def merge(self, leaves: tuple[jax.Array, ...]) -> Llama | Gemma3 | Mixture:
        """The module with these values; called inside a traced function."""
        return nnx.merge(self.graph, jax.tree.unflatten(self.treedef, leaves))

    @property
    def first(self) -> bool:
        """Whether it begins with the embedding."""
        return self.layers.start == 0

    @property
    def last(self) -> bool:
        """Whether it ends with the head."""
        return self.layers.stop == self.spec.num_layers

    @property
    def weight_bytes(self) -> int:
        """Bytes of all leaves, on all shards together."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in self.leaves.values())

    @property
    def stage(self) -> StageFacts:
        """Sizes of this part, for the resolution of the configuration."""
        sliding = sum(bool(self.spec.window(layer)) for layer in self.layers)
        return StageFacts(weight_bytes=self.weight_bytes, num_layers=len(self.layers), sliding_layers=sliding)


def blueprint(
    spec: ModelSpec, mesh: Mesh, dtype: Dtype, attention: AttentionKind = "xla", layers: range | None = None
) -> Blueprint:
    """Lay out the model of ``spec`` on ``mesh`` with matrices in ``dtype``; nothing is allocated.

    ``layers``: those of a pipeline stage whose devices are ``mesh``; without it, all.
    """
    layers = layers or range(spec.num_layers)
    shards = model_shards(mesh)
    layout = head_layout(spec.num_heads, spec.num_kv_heads, shards)
    family = ARCHITECTURES[spec.architecture]
    vocab = padded_vocab(spec.vocab_size, shards)
    module = nnx.eval_shape(lambda: family(spec, layout, shards, vocab, dtype, layers))
    graph, state = nnx.split(module)
    names: dict[str, jax.ShapeDtypeStruct] = {}
    for path, variable in nnx.to_flat_state(state):
        value = variable.get_value()
        sharding = named(mesh, variable.get_metadata("logical"))
        names[leaf_name(path, layers)] = jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
    kind = "tiles" if spec.experts is None else grouped_product()
    return Blueprint(spec, layout, mesh, dtype, attention, kind, graph, jax.tree.structure(state), names, layers)


def leaf_name(path: tuple[object, ...], layers: range) -> str:
    """Name of the leaf at ``path`` of a module; its blocks are named by layer."""
    match path:
        case ("blocks", int(at), *rest):
            return ".".join(map(str, ("blocks", layers[at], *rest)))
        case _:
            return ".".join(map(str, path))


def stage_blueprints(spec: ModelSpec, mesh: Mesh, dtype: Dtype) -> tuple[Blueprint, ...]:
    """The model cut along the ``stage`` axis of ``mesh``, a part for each stage; one part where there is one stage."""
    meshes = stage_meshes(mesh)
    parts = zip(meshes, stage_layers(spec.num_layers, len(meshes)), strict=True)
    return tuple(blueprint(spec, mesh, dtype, layers=layers) for mesh, layers in parts)


def joined(parts: Sequence[Blueprint]) -> Blueprint:
    """What was cut into stages, as far as its leaves go, each on the devices of its stage: it loads, but cannot run."""
    leaves = {name: leaf for part in parts for name, leaf in part.leaves.items()}
    return replace(parts[0], layers=range(parts[0].spec.num_layers), leaves=leaves)


def feed_forward_parameters(spec: ModelSpec) -> int:
    """Weights of the feed-forwards of all layers."""
    sparse = len(spec.sparse_layers)
    dense = (spec.num_layers - sparse) * 3 * spec.hidden_size * spec.intermediate_size
    if spec.experts is None:
        return dense
    experts = spec.experts
    return dense + sparse * spec.hidden_size * (experts.count * (3 * experts.width + 1) + 3 * experts.shared_width)


def feed_forward_sizes(spec: ModelSpec) -> tuple[int, ...]:
    """Inner sizes of the feed-forwards that are no experts."""
    dense = [spec.intermediate_size] if len(spec.sparse_layers) < spec.num_layers else []
    shared = [spec.experts.shared_width] if spec.experts is not None and spec.experts.shared_width else []
    return (*dense, *shared)


def facts(spec: ModelSpec) -> ModelFacts:
    """Sizes of a model, for the resolution of the configuration."""
    attention = spec.hidden_size * spec.head_dim * 2 * (spec.num_heads + spec.num_kv_heads)
    embeddings = spec.vocab_size * spec.hidden_size * (1 if spec.tie_embeddings else 2)
    return ModelFacts(
        architecture=spec.architecture,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        context_length=spec.context_length,
        num_parameters=spec.num_layers * attention + feed_forward_parameters(spec) + embeddings,
        dtype=spec.dtype,
        sliding_layers=sum(spec.sliding_layers),
        sliding_window=spec.sliding_window,
        feed_forward_sizes=feed_forward_sizes(spec),
        num_experts=0 if spec.experts is None else spec.experts.count,
        expert_size=0 if spec.experts is None else spec.experts.width,
    )
