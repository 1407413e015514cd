"""Writes the logits that the models here are held to, as Hugging Face transformers computes them in float32.

Run by hand, in an environment of its own with torch, transformers, gguf and safetensors:

    python tests/golden/make_logits.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf path/to/gemma-3-270m-q4_k_m.gguf

``models/NAME`` are random models of two layers, one of each architecture, with weights rounded to bfloat16;
``logits/NAME.npz`` holds ``ids`` int32[positions] and ``logits`` float32[positions, vocabulary] of each.
``logits/smollm2.npz`` holds, of the real model and for the prompts ``chat`` and ``plain``: ``ids``, ``logits`` at the
256 ids of ``subset``, the ``scale`` (largest magnitude) and the ``argmax`` of each position; and ``chat_greedy``, the
32 ids that greedy decoding appends to the chat prompt. ``logits/gemma3-270m.npz`` holds of a text longer than the
window of Gemma 3 270M: ``ids``, ``at`` (some positions, the last one too) and for these ``logits``, ``scale``,
``argmax``; and ``greedy``, the ids that greedy decoding appends.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

HERE = Path(__file__).parent
POSITIONS = 40
SUBSET = 256
NEW_TOKENS = 32
SMALL = {
    "vocab_size": 512,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(
        **SMALL, hidden_size=64, num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "llama-9-3": LlamaConfig(
        **SMALL, hidden_size=72, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True
    ),
    "llama3": LlamaConfig(
        **SMALL,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        rope_parameters=LLAMA3_ROPE,
        rms_norm_eps=1e-5,
    ),
    "mistral": MistralConfig(
        **SMALL,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        sliding_window=None,
        tie_word_embeddings=False,
    ),
    "qwen2": Qwen2Config(
        **SMALL, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "qwen3": Qwen3Config(
        **SMALL, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, tie_word_embeddings=False
    ),
    "gemma3": Gemma3TextConfig(
        **SMALL | {"num_hidden_layers": 3},
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=24,
        sliding_window=10,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen3-moe": Qwen3MoeConfig(
        **SMALL,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=32,
        norm_topk_prob=True,
        tie_word_embeddings=False,
    ),
    "qwen2-moe": Qwen2MoeConfig(
        **SMALL | {"num_hidden_layers": 3},
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=12,
        num_experts_per_tok=4,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
        mlp_only_layers=[1],
        tie_word_embeddings=True,
    ),
    "mixtral": MixtralConfig(
        **SMALL,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
    ),
}
PLAIN = (
    "The quick brown fox jumps over the lazy dog. In 1969, two people walked on the Moon; in 2024, nobody did. "
    "def add(a, b):\n    return a + b\n"
)


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model whose every parameter matters: biases and norm weights are random too."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            drawn = torch.randn_like(parameter) * 0.3 + (0.0 if name.endswith("bias") else 1.0)
        else:
            drawn = torch.randn_like(parameter) * (1.0 if "embed" in name else 1.5 / parameter.shape[-1] ** 0.5)
        parameter.data.copy_(drawn.to(torch.bfloat16))
    return model


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    """float32[positions, vocabulary]."""
    return model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()


def make_small() -> None:
    """One random model of each architecture."""
    for number, (name, config) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        model = random_model(config)
        ids = np.random.default_rng(number).integers(3, config.vocab_size, POSITIONS).astype(np.int32)
        np.savez_compressed(HERE / "logits" / f"{name}.npz", ids=ids, logits=logits_of(model, ids))
        model.to(torch.bfloat16).save_pretrained(HERE / "models" / name)


def make_smollm2(gguf: Path) -> None:
    """The real model, with the float32 weights that its GGUF file dequantises to."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    messages = [{"role": "user", "content": "Name the capital of France."}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompts = {"chat": chat, "plain": PLAIN}
    arrays = {"subset": np.sort(np.random.default_rng(0).choice(model.config.vocab_size, SUBSET, False))}
    for name, text in prompts.items():
        ids = np.array(tokenizer(text, add_special_tokens=False).input_ids, np.int32)
        logits = logits_of(model, ids)
        arrays |= {
            f"{name}_ids": ids,
            f"{name}_logits": logits[:, arrays["subset"]],
            f"{name}_scale": np.abs(logits).max(-1),
            f"{name}_argmax": logits.argmax(-1).astype(np.int32),
        }
    prompt = torch.from_numpy(arrays["chat_ids"].astype(np.int64))[None]
    mask = torch.ones_like(prompt)
    answer = model.generate(prompt, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
    arrays["chat_greedy"] = answer[0, prompt.shape[1] :].numpy().astype(np.int32)
    np.savez_compressed(HERE / "logits" / "smollm2.npz", **arrays)


def make_gemma3(gguf: Path) -> None:
    """The real sliding-window model, on a text of more tokens than its window."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    assert model.config.sliding_window == 512
    names = ("fox", "dog", "cat", "owl", "hen")
    story = (f"On day {i} the {names[i % 5]} met the {names[i * 3 % 5]} and gave it {i * i} nuts. " for i in range(40))
    ids = np.array(tokenizer("".join(story)).input_ids, np.int32)
    assert len(ids) > 600
    logits = logits_of(model, ids)
    at = np.unique(np.append(np.arange(0, len(ids), 24), [510, 511, 512, 513, len(ids) - 1]))
    subset = np.sort(np.random.default_rng(0).choice(model.config.vocab_size, SUBSET, False))
    prompt = torch.from_numpy(ids.astype(np.int64))[None]
    mask = torch.ones_like(prompt)
    answer = model.generate(prompt, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
    np.savez_compressed(
        HERE / "logits" / "gemma3-270m.npz",
        ids=ids,
        at=at,
        subset=subset,
        logits=logits[at][:, subset],
        scale=np.abs(logits[at]).max(-1),
        argmax=logits[at].argmax(-1).astype(np.int32),
        greedy=answer[0, len(ids) :].numpy().astype(np.int32),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_small()
    if len(sys.argv) > 2:
        make_smollm2(Path(sys.argv[1]))
        make_gemma3(Path(sys.argv[2]))
