"""A model's hyper-parameters, as the architectures need them."""

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["llama", "mistral", "qwen2", "qwen3", "gemma3", "mixtral", "qwen2_moe", "qwen3_moe"]
Activation = Literal["silu", "gelu_tanh"]
Dtype = Literal["float32", "bfloat16"]
AttentionKind = Literal["xla", "pallas"]
ExpertsKind = Literal["tiles", "ragged"]
"""How the rows of each expert are multiplied by its weights; see ``model.layers.grouped``."""


@dataclass(slots=True, frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's frequency scaling of rotary embeddings (Llama 3.1 release, ``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(slots=True, frozen=True, kw_only=True)
class Experts:
    """The sparse feed-forward of a mixture of experts: a router sends every token to some of the experts."""

    count: int
    per_token: int
    width: int
    """Inner size of one expert."""
    normalise: bool
    """Whether the shares of a token's experts are scaled to sum to one."""
    shared_width: int = 0
    """Inner size of one more expert that every token takes, by a gate of its own (Qwen2-MoE); 0 where there is none."""
    dense_layers: tuple[int, ...] = ()
    """Layers that have an ordinary feed-forward instead."""


@dataclass(slots=True, frozen=True, kw_only=True)
class ModelSpec:
    """Shape and options of one decoder-only transformer."""

    architecture: Architecture
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    """RMS norm on each head of q and k before rotation (Qwen3, Gemma 3)."""
    dtype: str
    """The dtype that the checkpoint declares."""
    eos_token_ids: tuple[int, ...]
    activation: Activation = "silu"
    query_scalar: int | None = None
    """Queries are multiplied by its inverse square root; None means ``head_dim``."""
    embedding_scale: float = 1.0
    norm_offset: float = 0.0
    """What the norms add to the weights of a checkpoint (Gemma stores the distance from 1)."""
    post_norms: bool = False
    """RMS norms behind attention and feed-forward too, before the residual is added (Gemma 3)."""
    sliding_window: int = 0
    """Tokens that a sliding layer sees, the token itself included; 0 where no layer slides."""
    sliding_layers: tuple[bool, ...] = ()
    """By layer, whether it slides; empty where none does."""
    local_rope_theta: float | None = None
    """Rotation base of the sliding layers; they are not scaled. None: as the others."""

    experts: Experts | None = None
    """None where every feed-forward is dense."""

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """Layers with experts."""
        dense = range(self.num_layers) if self.experts is None else self.experts.dense_layers
        return tuple(layer for layer in range(self.num_layers) if layer not in dense)

    def window(self, layer: int) -> int:
        """Tokens that ``layer`` sees of its past, the token itself included; 0 means all."""
        return self.sliding_window if self.sliding_layers and self.sliding_layers[layer] else 0
