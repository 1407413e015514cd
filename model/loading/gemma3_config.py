"""``config.json`` of a Gemma 3 text model → ``ModelSpec``, or a clear refusal."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from configs.errors import ConfigError
from model.loading.config_fields import Count, Positive, TokenIds
from model.loading.folder import read_json
from model.spec import ModelSpec

NAME = "Gemma3ForCausalLM"
_UNSCALED = frozenset({None, "default", "none"})
_Layers = Annotated[list[Literal["sliding_attention", "full_attention"]], Meta(max_length=1024)]


class _Rope(Struct, frozen=True):
    """Rotation of one kind of layer."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None


class _Ropes(Struct, frozen=True):
    """``rope_parameters`` (transformers 5), by kind of layer."""

    full_attention: _Rope = _Rope()
    sliding_attention: _Rope = _Rope()


class _Config(Struct, frozen=True):
    """The keys of config.json that mean something here, with the defaults of transformers."""

    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Annotated[int, Meta(ge=1, le=1024)]
    num_attention_heads: Count
    num_key_value_heads: Count
    vocab_size: Count
    max_position_embeddings: Count = 131_072
    head_dim: Count = 256
    rms_norm_eps: Positive = 1e-6
    query_pre_attn_scalar: Count = 256
    sliding_window: Count = 4096
    layer_types: _Layers | None = None
    sliding_window_pattern: Count | None = None
    pattern: Count | None = msgspec.field(default=None, name="_sliding_window_pattern")
    rope_theta: Positive | None = None
    rope_local_base_freq: Positive | None = None
    rope_parameters: _Ropes = _Ropes()
    rope_scaling: _Rope | None = None
    tie_word_embeddings: bool = True
    hidden_activation: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    use_bidirectional_attention: bool = False
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    quantization_config: dict[str, msgspec.Raw] | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    eos_token_id: TokenIds = None


def read_gemma3(path: Path) -> ModelSpec:
    """Read the hyper-parameters of a Gemma 3 text model; both spellings, before and since transformers 5.

    Raises:
        ConfigError: something that the model asks for is not supported.
    """
    config = read_json(path, _Config)
    if config.num_attention_heads % config.num_key_value_heads:
        raise ConfigError(f"{path}: num_attention_heads is no multiple of num_key_value_heads", key="model.source")
    if refused := _unsupported(config):
        raise ConfigError(f"{path}: {refused} is not supported", key="model.source")
    sliding = _sliding(config)
    if len(sliding) != config.num_hidden_layers:
        what = f"{path}: layer_types names {len(sliding)} layers and num_hidden_layers is {config.num_hidden_layers}"
        raise ConfigError(what, key="model.source")
    ropes = config.rope_parameters
    ends = [config.eos_token_id] if isinstance(config.eos_token_id, int) else config.eos_token_id or []
    return ModelSpec(
        architecture="gemma3",
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        rope_theta=ropes.full_attention.rope_theta or config.rope_theta or 1e6,
        rope_scaling=None,
        tie_embeddings=config.tie_word_embeddings,
        qkv_bias=False,
        qk_norm=True,
        dtype=config.dtype or config.torch_dtype or "float32",
        eos_token_ids=tuple(ends),
        activation="gelu_tanh",
        query_scalar=config.query_pre_attn_scalar,
        embedding_scale=config.hidden_size**0.5,
        norm_offset=1.0,
        post_norms=True,
        sliding_window=config.sliding_window if any(sliding) else 0,
        sliding_layers=sliding,
        local_rope_theta=ropes.sliding_attention.rope_theta or config.rope_local_base_freq or 10_000.0,
    )


def layer_kinds(num_layers: int, pattern: int) -> list[str]:
    """Every ``pattern``-th layer sees everything, the others slide (Gemma 3: every sixth)."""
    return ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(num_layers)]


def _sliding(config: _Config) -> tuple[bool, ...]:
    kinds = config.layer_types
    if kinds is None:
        kinds = layer_kinds(config.num_hidden_layers, config.sliding_window_pattern or config.pattern or 6)
    return tuple(kind == "sliding_attention" for kind in kinds)


def _unsupported(config: _Config) -> str | None:
    """The first thing that the model asks for and that would be ignored."""
    ropes = config.rope_parameters
    scalings = [rope.rope_type or rope.type for rope in (ropes.full_attention, ropes.sliding_attention)]
    scalings += [] if config.rope_scaling is None else [config.rope_scaling.rope_type or config.rope_scaling.type]
    scaling = next((kind for kind in scalings if kind not in _UNSCALED), None)
    refusals = {
        f"hidden_activation {config.hidden_activation!r} (only gelu_pytorch_tanh)": config.hidden_activation
        != "gelu_pytorch_tanh",
        "attention_bias true": config.attention_bias,
        "use_bidirectional_attention true": config.use_bidirectional_attention,
        "final_logit_softcapping": config.final_logit_softcapping is not None,
        "attn_logit_softcapping": config.attn_logit_softcapping is not None,
        "a quantization_config": config.quantization_config is not None,
        f"rope scaling of type {scaling!r}": scaling is not None,
    }
    return next((what for what, asked in refusals.items() if asked), None)
