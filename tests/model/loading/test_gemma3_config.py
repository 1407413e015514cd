"""config.json of Gemma 3: both spellings read alike, and nothing that would be ignored is accepted."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError
from model.loading.folder import model_folder
from model.loading.hf_config import read_config
from model.spec import ModelSpec

GOLDEN = Path(__file__).parents[2] / "golden" / "models"
BASE: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "vocab_size": 512,
    "sliding_window": 512,
}


def spec_of(folder: Path, **keys: Any) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(BASE | keys))
    return read_config(model_folder(folder))


def test_what_transformers_writes_is_read():
    spec = read_config(model_folder(GOLDEN / "gemma3"))
    assert (spec.architecture, spec.num_heads, spec.num_kv_heads, spec.head_dim) == ("gemma3", 4, 2, 32)
    assert (spec.sliding_window, spec.sliding_layers, spec.query_scalar) == (10, (True, False, True), 24)
    assert [spec.window(layer) for layer in range(3)] == [10, 0, 10]
    assert (spec.rope_theta, spec.local_rope_theta, spec.embedding_scale) == (1e6, 1e4, 8.0)
    assert (spec.tie_embeddings, spec.qk_norm, spec.context_length) == (True, True, 256)
    assert spec.eos_token_ids == (2,)


def test_old_and_new_spelling_mean_the_same(tmp_path: Path):
    kinds = ["full_attention" if i in (2, 5) else "sliding_attention" for i in range(8)]
    ropes = {"full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}
    new = spec_of(tmp_path, layer_types=kinds, rope_parameters=ropes)
    old = {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": None}
    assert spec_of(tmp_path, sliding_window_pattern=3, **old) == new
    assert spec_of(tmp_path, _sliding_window_pattern=3, **old) == new
    assert (new.rope_theta, new.local_rope_theta) == (5e5, 2e4)


def test_what_is_left_out_has_the_defaults_of_transformers(tmp_path: Path):
    spec = spec_of(tmp_path, eos_token_id=[1, 106, 999])
    assert spec.sliding_layers == (True,) * 5 + (False,) + (True,) * 2
    assert (spec.head_dim, spec.query_scalar, spec.rope_theta, spec.local_rope_theta) == (256, 256, 1e6, 1e4)
    assert (spec.tie_embeddings, spec.context_length, spec.eos_token_ids) == (True, 131_072, (1, 106))


def test_a_model_without_sliding_layers_has_no_window(tmp_path: Path):
    assert spec_of(tmp_path, layer_types=["full_attention"] * 8).sliding_window == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hidden_activation": "gelu"}, "hidden_activation 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope scaling of type 'linear'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, "rope scaling of type 'linear'"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers and num_hidden_layers is 8"),
        ({"layer_types": ["chunked_attention"] * 8}, "layer_types"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "no multiple"),
    ],
)
def test_what_would_be_ignored_or_makes_no_sense_is_refused(keys: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        spec_of(tmp_path, **keys)
