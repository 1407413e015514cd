"""From named checkpoint tensors to the model's sharded leaves: fusing, dealing of heads, padding, placing."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Sharding

from configs.memory import size
from configs.schema import Model as ModelConfig
from model.loading.budget import Budget, peak_resident_bytes
from model.loading.checkpoint import open_checkpoint
from model.loading.dummy import DummyCheckpoint
from model.loading.folder import ModelFolder
from model.loading.orbax import Conversion, conversion_of, not_held, open_leaves, restore
from model.registry import Blueprint
from model.relayout import Dealing, relaid
from model.rows import Array, deal, interleave, pad
from model.spec import ModelSpec
from sharding.mesh import model_shards

_LOG = logging.getLogger(__name__)
LOADER_THREADS = 4
PRE_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
"""Checkpoint names of a layer's norms."""
BLOCK_NORMS = {
    "attention_norm": "input_layernorm",
    "after_attention_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "after_mlp_norm": "post_feedforward_layernorm",
}
"""The same where there are norms behind attention and feed-forward too."""


@dataclass(slots=True, frozen=True)
class ExpertNames:
    """Checkpoint names of a mixture's tensors, inside a layer."""

    router: str
    experts: str
    gate: str
    up: str
    down: str


QWEN_EXPERTS = ExpertNames("mlp.gate", "mlp.experts", "gate_proj", "up_proj", "down_proj")
MIXTRAL_EXPERTS = ExpertNames("block_sparse_moe.gate", "block_sparse_moe.experts", "w1", "w3", "w2")


def expert_names(spec: ModelSpec) -> ExpertNames:
    """The names that the family uses."""
    return MIXTRAL_EXPERTS if spec.architecture == "mixtral" else QWEN_EXPERTS


class Tensors(Protocol):
    """What is read of a checkpoint: tensors by Hugging Face name, matrices as [out, in]."""

    def read(self, name: str) -> Array:
        """One tensor."""
        ...


@dataclass(slots=True, frozen=True)
class Assembly:
    """Builds whole leaves out of checkpoint tensors."""

    model: Blueprint
    tensors: Tensors

    def leaf(self, name: str) -> Array:
        """The leaf ``name`` as one host array."""
        target = self.model.leaves[name]
        match name.split("."):
            case ["embedding"]:
                return pad(self.tensors.read("model.embed_tokens.weight"), target.shape)
            case ["head"]:
                source = "model.embed_tokens.weight" if self.model.spec.tie_embeddings else "lm_head.weight"
                return pad(self.tensors.read(source), target.shape)
            case ["final_norm", "scale"]:
                return self.norm("model.norm")
            case ["blocks", index, *rest]:
                return self.block(f"model.layers.{index}.", ".".join(rest))
            case _:
                raise AssertionError(f"no checkpoint tensor is known for the leaf {name}")

    def block(self, at: str, name: str) -> Array:
        """A leaf of one layer, whose tensors are named ``at`` and more."""
        read, layout = self.tensors.read, self.model.layout
        match name:
            case "attention_norm.scale" | "after_attention_norm.scale" | "mlp_norm.scale" | "after_mlp_norm.scale":
                names = BLOCK_NORMS if self.model.spec.post_norms else PRE_NORMS
                return self.norm(at + names[name.split(".")[0]])
            case "attention.qkv":
                return self.fuse_qkv(*(read(f"{at}self_attn.{part}_proj.weight") for part in "qkv")).T
            case "attention.qkv_bias":
                return self.fuse_qkv(*(read(f"{at}self_attn.{part}_proj.bias") for part in "qkv"))
            case "attention.q_norm.scale" | "attention.k_norm.scale":
                return self.norm(f"{at}self_attn.{name.split('.')[1]}")
            case "attention.out":
                return deal(read(at + "self_attn.o_proj.weight").T, layout.query, self.model.spec.head_dim)
            case _:
                return self.feed_forward(at, name)

    def feed_forward(self, at: str, name: str) -> Array:
        """A leaf of a layer's feed-forward, dense or sparse."""
        read, names = self.tensors.read, expert_names(self.model.spec)
        match name:
            case "mlp.gate_up":
                return self.gate_up(at + "mlp.")
            case "mlp.down":
                return read(at + "mlp.down_proj.weight")
            case "experts.router":
                return read(f"{at}{names.router}.weight").T
            case "experts.gate_up":
                return self.every_expert(lambda i: self.expert_gate_up(at, names, i))
            case "experts.down":
                return self.every_expert(lambda i: read(f"{at}{names.experts}.{i}.{names.down}.weight").T)
            case "experts.shared_gate_up":
                return self.gate_up(at + "mlp.shared_expert.").T
            case "experts.shared_down":
                return read(at + "mlp.shared_expert.down_proj.weight").T
            case "experts.shared_gate":
                # a GGUF file holds it as a vector
                return read(at + "mlp.shared_expert_gate.weight").reshape(-1, 1)
            case _:
                raise AssertionError(f"no checkpoint tensor is known for the leaf {at}{name}")

    def gate_up(self, at: str) -> Array:
        """Gate and up rows of a dense feed-forward."""
        parts = (self.tensors.read(at + "gate_proj.weight"), self.tensors.read(at + "up_proj.weight"))
        return interleave(parts, self.shards)

    def expert_gate_up(self, at: str, names: ExpertNames, expert: int) -> Array:
        """Gate and up columns of one expert."""
        gate, up = (self.tensors.read(f"{at}{names.experts}.{expert}.{part}.weight") for part in (names.gate, names.up))
        return interleave((gate, up), self.model.mesh.shape["tensor"]).T

    def every_expert(self, read: Callable[[int], Array]) -> Array:
        """What ``read`` gives of each expert, stacked."""
        assert self.model.spec.experts is not None, "only a mixture has leaves of experts"
        first, stored = read(0), np.dtype(np.uint16 if self.model.dtype == "bfloat16" else np.float32)
        # filled one by one: all of them as they are read take several times the memory of the leaf
        leaf = np.empty((self.model.spec.experts.count, *first.shape), stored)
        for expert in range(len(leaf)):
            leaf[expert] = stored_as(read(expert), stored)
        return leaf

    def norm(self, name: str) -> Array:
        """The vector that a norm scales by."""
        stored = self.tensors.read(name + ".weight")
        offset = self.model.spec.norm_offset
        return stored.astype(np.float32) + np.float32(offset) if offset else stored

    @property
    def shards(self) -> int:
        """Shards of what is not an expert."""
        return model_shards(self.model.mesh)

    def fuse_qkv(self, q: Array, k: Array, v: Array) -> Array:
        """[out, in] or [out]: by shard its query, key and value rows."""
        layout, dim = self.model.layout, self.model.spec.head_dim
        dealt = (deal(q, layout.query, dim), deal(k, layout.kv, dim), deal(v, layout.kv, dim))
        return interleave(dealt, self.shards)


def stored_as(x: Array, dtype: np.dtype[Any]) -> Array:
    """``x`` in the dtype of a leaf; uint16 are the bits of bfloat16, and stay as they are."""
    if dtype != np.uint16:
        return x.astype(dtype)
    return x if x.dtype == np.uint16 else x.astype(ml_dtypes.bfloat16).view(np.uint16)


def values_of(stored: Array) -> Array:
    """The numbers of a leaf: uint16 are the bits of bfloat16."""
    return stored.view(ml_dtypes.bfloat16) if stored.dtype == np.uint16 else stored


def hugging_face_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint of this shape, by its Hugging Face name."""
    hidden, q, kv = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, q),
    }
    if spec.post_norms:
        layer |= {f"{name}.weight": (hidden,) for name in BLOCK_NORMS.values()}
    if spec.qkv_bias:
        layer |= {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
    if spec.qk_norm:
        layer |= {"self_attn.q_norm.weight": (spec.head_dim,), "self_attn.k_norm.weight": (spec.head_dim,)}
    shapes = {
        f"model.layers.{i}.{name}": shape
        for i in range(spec.num_layers)
        for name, shape in (layer | feed_forward_shapes(spec, i)).items()
    }
    shapes |= {"model.embed_tokens.weight": (spec.vocab_size, hidden), "model.norm.weight": (hidden,)}
    return shapes if spec.tie_embeddings else shapes | {"lm_head.weight": (spec.vocab_size, hidden)}


def feed_forward_shapes(spec: ModelSpec, layer: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one layer's feed-forward, by their names inside the layer."""

    def gated(gate: str, up: str, down: str, width: int) -> dict[str, tuple[int, ...]]:
        into, out = (width, spec.hidden_size), (spec.hidden_size, width)
        return {f"{gate}.weight": into, f"{up}.weight": into, f"{down}.weight": out}

    if spec.experts is None or layer in spec.experts.dense_layers:
        return gated("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", spec.intermediate_size)
    names, experts = expert_names(spec), spec.experts
    shapes: dict[str, tuple[int, ...]] = {f"{names.router}.weight": (experts.count, spec.hidden_size)}
    for i in range(experts.count):
        at = f"{names.experts}.{i}"
        shapes |= gated(f"{at}.{names.gate}", f"{at}.{names.up}", f"{at}.{names.down}", experts.width)
    if experts.shared_width:
        at = "mlp.shared_expert"
        shapes |= gated(f"{at}.gate_proj", f"{at}.up_proj", f"{at}.down_proj", experts.shared_width)
        shapes[f"{at}_gate.weight"] = (1, spec.hidden_size)
    return shapes


def load_weights(
    config: ModelConfig, folder: ModelFolder, model: Blueprint, progress: Callable[[int, int], None]
) -> dict[str, jax.Array]:
    """Every leaf, from wherever ``config`` and the folder say: random, converted, or a checkpoint to assemble."""
    began = time.perf_counter()
    if config.load_format == "dummy":
        arrays = assemble(model, DummyCheckpoint(hugging_face_shapes(model.spec), config.seed), progress)
    elif folder.weights == "orbax":
        arrays = load_converted(folder, model, progress)
    else:
        arrays = assemble(model, open_checkpoint(folder), progress)
    _LOG.info(
        "weights: %s in %.1f s; peak of this process's memory so far: %s",
        size(model.weight_bytes),
        time.perf_counter() - began,
        size(peak_resident_bytes()),
    )
    return arrays


def load_converted(folder: ModelFolder, model: Blueprint, progress: Callable[[int, int], None]) -> dict[str, jax.Array]:
    """The leaves that ``radjax model convert`` wrote, dealt anew where that was for another mesh.

    Raises:
        ConfigError: they are another model's, or are damaged.
    """
    there, here = conversion_of(folder), Conversion.of(model.leaves)
    # a stage with the head alone has its own copy of what was converted once
    names = {"head": "embedding"} if model.spec.tie_embeddings else {}
    if there == here and model.leaves.keys().isdisjoint(names):
        return restore(folder, model.leaves)
    old, new = (Dealing(model.spec, one.expert, one.tensor) for one in (there, here))

    def dealt_anew(name: str, stored: Array) -> Array:
        try:
            leaf = relaid(name, values_of(stored), old, new)
        except (ValueError, IndexError) as error:
            raise not_held(folder, error) from error
        if leaf.shape != model.leaves[name].shape:
            raise not_held(folder, ValueError(f"{name} becomes {leaf.shape}, not {model.leaves[name].shape}"))
        return leaf

    with open_leaves(folder) as read:
        return load_leaves(model, lambda name: dealt_anew(name, read(names.get(name, name))), progress)


def assemble(model: Blueprint, tensors: Tensors, progress: Callable[[int, int], None]) -> dict[str, jax.Array]:
    """Every leaf of ``model`` on its devices, from checkpoint tensors."""
    return load_leaves(model, Assembly(model, tensors).leaf, progress)


def load_leaves(
    model: Blueprint, read: Callable[[str], Array], progress: Callable[[int, int], None]
) -> dict[str, jax.Array]:
    """Every leaf of ``model`` on its devices; ``progress(done, total)`` as they arrive.

    Several threads read, as many leaves at once as take no more memory than the largest of them.
    """
    sizes = {name: leaf.size * leaf.dtype.itemsize for name, leaf in model.leaves.items()}
    budget = Budget(max(sizes.values()))

    def one(name: str) -> tuple[str, jax.Array]:
        target = model.leaves[name]
        with budget.hold(sizes[name]):
            host = read(name)
            assert host.shape == target.shape, f"{name}: {host.shape} is there, the model wants {target.shape}"
            return name, place(stored_as(host, target.dtype), target.sharding).block_until_ready()

    arrays: dict[str, jax.Array] = {}
    with ThreadPoolExecutor(LOADER_THREADS, thread_name_prefix="weights") as pool:
        for done, (name, array) in enumerate(pool.map(one, model.leaves), 1):
            arrays[name] = array
            progress(done, len(model.leaves))
    return arrays


def place(host: Array, sharding: Sharding) -> jax.Array:
    """``host`` on its devices; of a mesh over several processes each places the shards that are its own."""
    return jax.make_array_from_callback(host.shape, sharding, lambda index: np.ascontiguousarray(host[index]))
