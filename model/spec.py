"""A model's hyper-parameters, as the architectures need them."""

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["llama", "mistral", "qwen2", "qwen3"]
Dtype = Literal["float32", "bfloat16"]
AttentionKind = Literal["xla", "pallas"]


@dataclass(slots=True, frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's frequency scaling of rotary embeddings (Llama 3.1 release, ``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


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
    """RMS norm on each head of q and k before rotation (Qwen3)."""
    dtype: str
    """The dtype that the checkpoint declares."""
    eos_token_ids: tuple[int, ...]
