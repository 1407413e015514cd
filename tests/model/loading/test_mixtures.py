"""Mixtures of experts: config.json and GGUF files of each family, read alike, and what cannot be is refused."""

import dataclasses
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from configs.errors import ConfigError
from model.loading.folder import model_folder
from model.loading.gguf import GgufCheckpoint
from model.loading.gguf_file import open_gguf
from model.loading.gguf_folder import config
from model.loading.hf_config import read_config
from model.loading.safetensors import SafetensorsCheckpoint
from model.spec import Experts

GOLDEN = Path(__file__).parents[2] / "golden" / "models"
EXPERTS = {
    "qwen3-moe": Experts(count=8, per_token=3, width=32, normalise=True),
    "qwen2-moe": Experts(count=12, per_token=4, width=32, normalise=False, shared_width=64, dense_layers=(1,)),
    "mixtral": Experts(count=4, per_token=2, width=128, normalise=True),
}
FAMILIES = {"qwen3-moe": "qwen3moe", "qwen2-moe": "qwen2moe", "mixtral": "llama"}
PARTS = {
    "mlp.experts.{}.gate_proj": "ffn_gate_exps",
    "mlp.experts.{}.up_proj": "ffn_up_exps",
    "mlp.experts.{}.down_proj": "ffn_down_exps",
    "block_sparse_moe.experts.{}.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.{}.w3": "ffn_up_exps",
    "block_sparse_moe.experts.{}.w2": "ffn_down_exps",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def written_as_gguf(name: str, path: Path) -> None:
    """The feed-forwards of a golden model as llama.cpp's converter stacks them, experts in Q8_0."""
    source, spec = SafetensorsCheckpoint(GOLDEN / name), read_config(model_folder(GOLDEN / name))
    assert spec.experts is not None
    kind = FAMILIES[name]
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(spec.num_layers)
    writer.add_context_length(spec.context_length)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_expert_count(spec.experts.count)
    writer.add_expert_used_count(spec.experts.per_token)
    writer.add_tensor("token_embd.weight", source.read("model.embed_tokens.weight").astype(np.float32))
    for layer in range(spec.num_layers):
        for theirs, stored in PARTS.items():
            at = f"model.layers.{layer}.{theirs}.weight"
            if at.format(0) not in source.names():
                continue
            experts = range(spec.experts.count) if "{}" in at else [0]
            stack = np.stack([source.read(at.format(i)).astype(np.float32) for i in experts])
            quantised = "{}" in at
            tensor = gguf.quants.quantize(stack, Kind.Q8_0) if quantised else stack[0]
            writer.add_tensor(f"blk.{layer}.{stored}.weight", tensor, raw_dtype=Kind.Q8_0 if quantised else None)
        if spec.experts.shared_width and layer not in spec.experts.dense_layers:
            gate = source.read(f"model.layers.{layer}.mlp.shared_expert_gate.weight")
            writer.add_tensor(f"blk.{layer}.ffn_gate_inp_shexp.weight", gate[0].astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", EXPERTS)
def test_what_transformers_writes_of_each_family_is_read(name: str) -> None:
    spec = read_config(model_folder(GOLDEN / name))
    assert spec.experts == EXPERTS[name]
    assert spec.architecture == name.replace("-", "_")
    assert spec.qkv_bias == (name == "qwen2-moe")
    assert spec.qk_norm == (name == "qwen3-moe")


@pytest.mark.parametrize("name", EXPERTS)
def test_a_gguf_file_of_each_family_has_the_experts_of_the_checkpoint_it_was_made_of(name: str, tmp_path: Path) -> None:
    written_as_gguf(name, tmp_path / "model.gguf")
    (tmp_path / "config.json").write_text(json.dumps(config(open_gguf(tmp_path / "model.gguf"))))
    ours, theirs = read_config(model_folder(tmp_path)), read_config(model_folder(GOLDEN / name))
    assert ours.architecture == theirs.architecture
    assert ours.experts == theirs.experts
    source, read = SafetensorsCheckpoint(GOLDEN / name), GgufCheckpoint(tmp_path)
    for tensor in read.names():
        expected = source.read(tensor).astype(np.float32)
        got = read.read(tensor)
        assert got.shape == read.shape(tensor)
        # eight bits of the largest of 32 neighbours
        assert np.abs(got.reshape(expected.shape) - expected).max() <= np.abs(expected).max() / 127
    experts = [tensor for tensor in source.names() if ".experts." in tensor]
    assert set(experts) <= set(read.names())


def test_other_spellings_mean_the_same_and_every_second_layer_may_be_dense(tmp_path: Path) -> None:
    keys = json.loads((GOLDEN / "qwen3-moe" / "config.json").read_text())
    keys |= {"num_experts": keys.pop("num_local_experts"), "decoder_sparse_step": 2, "num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    spec = read_config(model_folder(tmp_path))
    assert spec.experts == dataclasses.replace(EXPERTS["qwen3-moe"], dense_layers=(0, 2))
    assert spec.sparse_layers == (1, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, and there are 8 experts"),
        ({"num_local_experts": None}, "num_experts is missing"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ({"mlp_only_layers": [0, 1]}, "none of the layers has experts"),
        ({"architectures": ["Qwen2MoeForCausalLM"]}, "shared_expert_intermediate_size is missing"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    keys = json.loads((GOLDEN / "qwen3-moe" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(keys | change))
    with pytest.raises(ConfigError, match=said):
        read_config(model_folder(tmp_path))
