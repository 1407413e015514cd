"""What ``config.json`` says of a mixture of experts → ``Experts``, or a clear refusal."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from configs.errors import ConfigError
from model.loading.config_fields import Count
from model.loading.folder import read_json
from model.spec import Architecture, Experts

SPARSE: dict[str, Architecture] = {
    "MixtralForCausalLM": "mixtral",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}
_Layer = Annotated[int, Meta(ge=0, le=1023)]


class _Config(Struct, frozen=True):
    """The keys that mean something here; those without a default are asked for by name."""

    num_hidden_layers: Annotated[int, Meta(ge=1, le=1024)]
    intermediate_size: Count
    num_experts: Count | None = None
    num_local_experts: Count | None = None
    num_experts_per_tok: Count | None = None
    moe_intermediate_size: Count | None = None
    shared_expert_intermediate_size: Count | None = None
    norm_topk_prob: bool = False
    decoder_sparse_step: Count = 1
    mlp_only_layers: Annotated[list[_Layer], Meta(max_length=1024)] | None = None


def read_experts(path: Path, architecture: Architecture) -> Experts | None:
    """The experts of a mixture; None where ``architecture`` is dense.

    Raises:
        ConfigError: a key is missing, or the numbers contradict each other.
    """
    if architecture not in SPARSE.values():
        return None
    config = read_json(path, _Config)
    mixtral, shared = architecture == "mixtral", 0
    if architecture == "qwen2_moe":
        shared = _given(path, "shared_expert_intermediate_size", config.shared_expert_intermediate_size)
    count = _given(path, "num_experts", config.num_experts or config.num_local_experts)
    per_token = _given(path, "num_experts_per_tok", config.num_experts_per_tok)
    width = config.intermediate_size if mixtral else config.moe_intermediate_size
    if per_token > count:
        what = f"{path}: num_experts_per_tok is {per_token}, and there are {count} experts"
        raise ConfigError(what, key="model.source")
    dense = () if mixtral else _dense_layers(config)
    if len(dense) == config.num_hidden_layers:
        raise ConfigError(f"{path}: none of the layers has experts", key="model.source")
    return Experts(
        count=count,
        per_token=per_token,
        width=_given(path, "moe_intermediate_size", width),
        normalise=mixtral or config.norm_topk_prob,
        shared_width=shared,
        dense_layers=dense,
    )


def _given(path: Path, key: str, value: int | None) -> int:
    if value is None:
        raise ConfigError(f"{path}: {key} is missing", key="model.source")
    return value


def _dense_layers(config: _Config) -> tuple[int, ...]:
    """Every ``decoder_sparse_step``-th layer has experts, unless it is listed as dense."""
    listed = config.mlp_only_layers or []
    layers = range(config.num_hidden_layers)
    return tuple(i for i in layers if i in listed or (i + 1) % config.decoder_sparse_step)
