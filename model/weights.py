"""From named checkpoint tensors to the model's sharded leaves: fusing, dealing of heads, padding, placing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from configs.schema import Model as ModelConfig
from model.loading.checkpoint import open_checkpoint
from model.loading.dummy import DummyCheckpoint
from model.loading.folder import ModelFolder
from model.loading.orbax import restore
from model.registry import Blueprint
from model.spec import ModelSpec
from sharding.heads import ZERO_HEAD

Array = np.ndarray[Any, Any]
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
                return pad(self.tensors.read(source).T, target.shape)
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
            case "mlp.gate_up":
                parts = (read(at + "mlp.gate_proj.weight"), read(at + "mlp.up_proj.weight"))
                return interleave(parts, self.shards).T
            case "mlp.down":
                return read(at + "mlp.down_proj.weight").T
            case _:
                raise AssertionError(f"no checkpoint tensor is known for the leaf {at}{name}")

    def norm(self, name: str) -> Array:
        """The vector that a norm scales by."""
        stored = self.tensors.read(name + ".weight")
        offset = self.model.spec.norm_offset
        return stored.astype(np.float32) + np.float32(offset) if offset else stored

    @property
    def shards(self) -> int:
        """Size of the tensor axis."""
        return self.model.mesh.shape["tensor"]

    def fuse_qkv(self, q: Array, k: Array, v: Array) -> Array:
        """[out, in] or [out]: by shard its query, key and value rows."""
        layout, dim = self.model.layout, self.model.spec.head_dim
        dealt = (deal(q, layout.query, dim), deal(k, layout.kv, dim), deal(v, layout.kv, dim))
        return interleave(dealt, self.shards)


def deal(rows: Array, heads: tuple[int, ...], head_dim: int) -> Array:
    """Rows of the heads in the given order; ZERO_HEAD gives zero rows."""
    by_head = rows.reshape(-1, head_dim, *rows.shape[1:])
    dealt = by_head[np.maximum(heads, 0)]
    dealt[np.asarray(heads) == ZERO_HEAD] = 0
    return dealt.reshape(-1, *rows.shape[1:])


def interleave(parts: tuple[Array, ...], shards: int) -> Array:
    """Rows of the parts side by side within each shard: [p0 of shard 0, p1 of shard 0, p0 of shard 1, …]."""
    pieces = [np.split(part, shards) for part in parts]
    return np.concatenate([piece[shard] for shard in range(shards) for piece in pieces])


def pad(x: Array, shape: tuple[int, ...]) -> Array:
    """``x`` with zeros behind, up to ``shape``."""
    return np.pad(x, [(0, want - have) for have, want in zip(x.shape, shape, strict=True)])


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
        "mlp.gate_proj.weight": (spec.intermediate_size, hidden),
        "mlp.up_proj.weight": (spec.intermediate_size, hidden),
        "mlp.down_proj.weight": (hidden, spec.intermediate_size),
    }
    if spec.post_norms:
        layer |= {f"{name}.weight": (hidden,) for name in BLOCK_NORMS.values()}
    if spec.qkv_bias:
        layer |= {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
    if spec.qk_norm:
        layer |= {"self_attn.q_norm.weight": (spec.head_dim,), "self_attn.k_norm.weight": (spec.head_dim,)}
    shapes = {f"model.layers.{i}.{name}": shape for i in range(spec.num_layers) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (spec.vocab_size, hidden), "model.norm.weight": (hidden,)}
    return shapes if spec.tie_embeddings else shapes | {"lm_head.weight": (spec.vocab_size, hidden)}


def load_weights(
    config: ModelConfig, folder: ModelFolder, model: Blueprint, progress: Callable[[int, int], None]
) -> dict[str, jax.Array]:
    """Every leaf, from wherever ``config`` and the folder say: random, converted, or a checkpoint to assemble."""
    if config.load_format == "dummy":
        return assemble(model, DummyCheckpoint(hugging_face_shapes(model.spec), config.seed), progress)
    if folder.weights == "orbax":
        return restore(folder, model.leaves)
    return assemble(model, open_checkpoint(folder), progress)


def assemble(model: Blueprint, tensors: Tensors, progress: Callable[[int, int], None]) -> dict[str, jax.Array]:
    """Every leaf of ``model`` on its devices, read by several threads; ``progress(done, total)`` as they arrive."""
    assembly = Assembly(model, tensors)

    def one(name: str) -> tuple[str, jax.Array]:
        target = model.leaves[name]
        host = assembly.leaf(name)
        assert host.shape == target.shape, f"{name}: the checkpoint gives {host.shape}, the model wants {target.shape}"
        return name, jax.device_put(np.ascontiguousarray(host.astype(target.dtype)), target.sharding)

    arrays: dict[str, jax.Array] = {}
    with ThreadPoolExecutor(LOADER_THREADS, thread_name_prefix="weights") as pool:
        for done, (name, array) in enumerate(pool.map(one, model.leaves), 1):
            arrays[name] = array
            progress(done, len(model.leaves))
    return arrays
