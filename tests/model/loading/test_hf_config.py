"""config.json: both spellings read alike, and nothing that would be ignored is accepted."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError
from model.loading.folder import model_folder
from model.loading.hf_config import read_config
from model.spec import ModelSpec, RopeScaling

GOLDEN = Path(__file__).parents[2] / "golden" / "models"
BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def spec_of(folder: Path, generation: dict[str, Any] | None = None, **keys: Any) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(BASE | keys))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_config(model_folder(folder))


@pytest.mark.parametrize(
    ("name", "heads", "kv", "head_dim", "tied", "bias", "norm"),
    [
        ("llama", 8, 2, 8, True, False, False),
        ("llama-9-3", 9, 3, 8, True, False, False),
        ("llama3", 4, 2, 16, False, False, False),
        ("mistral", 4, 2, 32, False, False, False),
        ("qwen2", 4, 2, 16, True, True, False),
        ("qwen3", 4, 2, 32, False, False, True),
    ],
)
def test_what_transformers_writes_of_each_architecture_is_read(
    name: str, heads: int, kv: int, head_dim: int, tied: bool, bias: bool, norm: bool
):
    spec = read_config(model_folder(GOLDEN / name))
    assert spec.architecture == name.partition("-")[0].replace("llama3", "llama")
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (heads, kv, head_dim)
    assert (spec.tie_embeddings, spec.qkv_bias, spec.qk_norm) == (tied, bias, norm)
    assert (spec.num_layers, spec.vocab_size, spec.context_length) == (2, 512, 256)
    assert spec.eos_token_ids == (2,)
    assert spec.dtype == "bfloat16"


def test_old_and_new_spelling_of_rope_mean_the_same(tmp_path: Path):
    new = spec_of(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3})
    old = spec_of(tmp_path, rope_theta=5e5, rope_scaling={"type": "llama3", **LLAMA3})
    assert new == old
    assert new.rope_theta == 5e5
    assert new.rope_scaling == RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=32)


def test_what_is_left_out_has_the_defaults_of_transformers(tmp_path: Path):
    spec = spec_of(tmp_path)
    assert (spec.num_kv_heads, spec.head_dim, spec.rope_theta, spec.norm_eps) == (4, 16, 10_000.0, 1e-6)
    assert (spec.rope_scaling, spec.tie_embeddings, spec.eos_token_ids) == (None, False, ())


def test_generation_config_says_where_an_answer_ends(tmp_path: Path):
    assert spec_of(tmp_path, {"eos_token_id": [3, 5, 3, 999]}, eos_token_id=2).eos_token_ids == (3, 5)
    assert spec_of(tmp_path, {"eos_token_id": None}, eos_token_id=2).eos_token_ids == (2,)
    assert spec_of(tmp_path, {}, eos_token_id=[2, 4]).eos_token_ids == (2, 4)


@pytest.mark.parametrize(
    ("architecture", "keys", "context"),
    [
        ("MistralForCausalLM", {"sliding_window": 1024}, 1024),
        ("MistralForCausalLM", {"sliding_window": None}, 4096),
        ("Qwen2ForCausalLM", {"sliding_window": 1024, "use_sliding_window": False}, 4096),
        ("Qwen2ForCausalLM", {"sliding_window": 1024, "use_sliding_window": True}, 1024),
        ("LlamaForCausalLM", {"sliding_window": 1024}, 4096),
    ],
)
def test_a_sliding_window_that_is_in_use_limits_the_context(
    architecture: str, keys: dict[str, Any], context: int, tmp_path: Path
):
    assert spec_of(tmp_path, architectures=[architecture], **keys).context_length == context


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; supported are LlamaForCausalLM"),
        ({"architectures": []}, "is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling of type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "needs factor"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "no multiple"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_what_would_be_ignored_or_makes_no_sense_is_refused(keys: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        spec_of(tmp_path, **keys)


def test_the_configuration_of_another_architecture_need_not_be_understood(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"], "n_embd": 768}')
    with pytest.raises(ConfigError, match="GPT2LMHeadModel is not supported"):
        read_config(model_folder(tmp_path))


def test_json_that_is_damaged_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"hidden_size": ')
    with pytest.raises(ConfigError, match=r"config\.json is not valid"):
        read_config(model_folder(tmp_path))
