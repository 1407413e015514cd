"""``config.json`` of a Hugging Face folder → ``ModelSpec``, or a clear refusal."""

from dataclasses import replace
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from configs.errors import ConfigError
from model.loading import gemma3_config
from model.loading.config_fields import Count, Positive, TokenIds
from model.loading.experts_config import SPARSE, read_experts
from model.loading.folder import ModelFolder, read_json
from model.spec import Architecture, ModelSpec, RopeScaling

ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    **SPARSE,
}
_UNSCALED = frozenset({None, "default", "none"})


class _Rope(Struct, frozen=True):
    """``rope_parameters`` (transformers 5) or ``rope_scaling`` (before)."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: float | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Count | None = None

    @property
    def kind(self) -> str | None:
        return self.rope_type or self.type


class _Kind(Struct, frozen=True):
    """What config.json is asked first."""

    architectures: list[str] = []


class _Config(Struct, frozen=True):
    """The keys of config.json that mean something here, with the defaults of transformers."""

    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    vocab_size: Count
    max_position_embeddings: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    rms_norm_eps: Positive = 1e-6
    rope_theta: Positive | None = None
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None
    partial_rotary_factor: float | None = None
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    qkv_bias: bool = True
    sliding_window: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    use_sliding_window: bool = False
    quantization_config: dict[str, msgspec.Raw] | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    eos_token_id: TokenIds = None


class _Generation(Struct, frozen=True):
    """generation_config.json."""

    eos_token_id: TokenIds | UnsetType = UNSET


def read_config(folder: ModelFolder) -> ModelSpec:
    """Read the hyper-parameters of a model folder.

    The sliding window of Mistral and Qwen limits the context: up to that length the window hides nothing, so the
    answers are exact.

    Raises:
        ConfigError: the architecture, or something that the model asks for, is not supported.
    """
    path = folder.path / "config.json"
    name = next(iter(read_json(path, _Kind).architectures), "")
    if name == gemma3_config.NAME:
        spec = gemma3_config.read_gemma3(path)
        return replace(spec, eos_token_ids=_eos(folder, list(spec.eos_token_ids), spec.vocab_size))
    if name not in ARCHITECTURES:
        what = f"{path}: the architecture {name or 'of this model'} is not supported"
        supported = ", ".join([*ARCHITECTURES, gemma3_config.NAME])
        raise ConfigError(what, key="model.source", suggestion=f"supported are {supported}")
    config = read_json(path, _Config)
    if config.num_attention_heads % (config.num_key_value_heads or config.num_attention_heads):
        raise ConfigError(f"{path}: num_attention_heads is no multiple of num_key_value_heads", key="model.source")
    rope = config.rope_parameters or config.rope_scaling or _Rope()
    if refused := _unsupported(config, rope):
        raise ConfigError(f"{path}: {refused} is not supported", key="model.source")
    architecture = ARCHITECTURES[name]
    return ModelSpec(
        architecture=architecture,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=config.head_dim or _default_head_dim(architecture, config),
        vocab_size=config.vocab_size,
        context_length=min(config.max_position_embeddings, _window(architecture, config)),
        norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_theta or rope.rope_theta or 10_000.0,
        rope_scaling=_scaling(str(path), rope),
        tie_embeddings=config.tie_word_embeddings,
        qkv_bias=architecture == "qwen2" or (architecture == "qwen2_moe" and config.qkv_bias),
        qk_norm=architecture in ("qwen3", "qwen3_moe"),
        dtype=config.dtype or config.torch_dtype or "float32",
        eos_token_ids=_eos(folder, config.eos_token_id, config.vocab_size),
        experts=read_experts(path, architecture),
    )


def _unsupported(config: _Config, rope: _Rope) -> str | None:
    """The first thing that the model asks for and that would be ignored."""
    kind = rope.kind
    rotary = rope.partial_rotary_factor or config.partial_rotary_factor or 1.0
    refusals = {
        f"hidden_act {config.hidden_act!r} (only silu)": config.hidden_act != "silu",
        "attention_bias true": config.attention_bias,
        "mlp_bias true": config.mlp_bias,
        "a partial_rotary_factor below 1": rotary != 1.0,
        "a quantization_config": config.quantization_config is not None,
        f"rope scaling of type {kind!r} (only llama3)": kind not in _UNSCALED | {"llama3"},
    }
    return next((what for what, asked in refusals.items() if asked), None)


def _default_head_dim(architecture: Architecture, config: _Config) -> int:
    return 128 if architecture == "qwen3" else config.hidden_size // config.num_attention_heads


def _window(architecture: Architecture, config: _Config) -> int:
    """Mistral slides whenever a window is given, Qwen when it is also turned on, Llama never."""
    slides = architecture in ("mistral", "mixtral") or (architecture != "llama" and config.use_sliding_window)
    return config.sliding_window if slides and config.sliding_window else config.max_position_embeddings


def _scaling(path: str, rope: _Rope) -> RopeScaling | None:
    if rope.kind in _UNSCALED:
        return None
    values = (rope.factor, rope.low_freq_factor, rope.high_freq_factor, rope.original_max_position_embeddings)
    factor, low, high, original = values
    if factor is None or low is None or high is None or original is None or low >= high:
        raise ConfigError(
            f"{path}: rope scaling llama3 needs factor, low_freq_factor < high_freq_factor and "
            "original_max_position_embeddings",
            key="model.source",
        )
    return RopeScaling(factor=factor, low_freq_factor=low, high_freq_factor=high, original_context=original)


def _eos(folder: ModelFolder, configured: TokenIds, vocab_size: int) -> tuple[int, ...]:
    """generation_config.json counts before config.json, as in transformers; ids of the vocabulary only."""
    path = folder.path / "generation_config.json"
    given = read_json(path, _Generation).eos_token_id if path.is_file() else UNSET
    ids = configured if given is UNSET or given is None else given
    listed = [ids] if isinstance(ids, int) else ids or []
    return tuple(dict.fromkeys(token for token in listed if token < vocab_size))
