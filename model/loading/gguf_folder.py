"""What a GGUF file says of its model, written as the files of a Hugging Face folder.

The tokenizer is built from ``tokenizer.ggml.*`` with the ``tokenizers`` library; transformers reads GGUF metadata only
where torch is installed.
"""

from pathlib import Path

import msgspec
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from configs.errors import ConfigError
from model.loading.gemma3_config import layer_kinds
from model.loading.gguf import family
from model.loading.gguf_file import GgufFile, TensorType
from model.loading.gguf_sentencepiece import sentencepiece

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "qwen2moe": "Qwen2MoeForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
}
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_PRE_TOKENIZERS = ("smollm", "llama-bpe", "qwen2", "gpt-2", "default")
_CONTROL, _USER_DEFINED = 3, 4
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_END_KEYS = ("eos", "eot", "eom")
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192


def write_companions(file: GgufFile, folder: Path) -> None:
    """Write config.json, generation_config.json, the tokenizer's files and the chat template beside the weights.

    Raises:
        ConfigError: the architecture or the kind of tokenizer is not supported, or the metadata is incomplete.
    """
    tokens = file.strings("tokenizer.ggml.tokens")
    ends = [file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in _END_KEYS]
    end_ids = list(dict.fromkeys(token for token in ends if isinstance(token, int)))
    _write(folder / "config.json", config(file) | {"eos_token_id": end_ids})
    _write(folder / "generation_config.json", {"eos_token_id": end_ids})
    tokenizer(file).save(str(folder / "tokenizer.json"))
    special = {f"{ours}_token": _token(file, theirs, tokens) for ours, theirs in _SPECIAL.items()}
    special = {key: token for key, token in special.items() if token is not None}
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    if template := file.text("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def config(file: GgufFile) -> dict[str, object]:
    """The content of config.json."""
    kind = file.text("general.architecture")
    if kind not in _ARCHITECTURES:
        raise ConfigError(
            f"{file.path}: the architecture {kind!r} is not supported",
            key="model.source",
            suggestion=f"supported in GGUF files are {', '.join(_ARCHITECTURES)}",
        )
    if (parts := file.number("split.count", 1)) > 1:
        what = f"{file.path} is one of {parts} parts of a model"
        raise ConfigError(what, key="model.source", suggestion="merge them with llama-gguf-split --merge")
    if "token_embd.weight" not in file.tensors:
        raise ConfigError(f"{file.path} has no tensor token_embd.weight", key="model.source")
    heads = int(file.number(f"{kind}.attention.head_count"))
    hidden = int(file.number(f"{kind}.embedding_length"))
    head_dim = int(file.number(f"{kind}.attention.key_length", hidden // max(heads, 1)))
    return {
        "architectures": ["MixtralForCausalLM" if family(file) == "mixtral" else _ARCHITECTURES[kind]],
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": int(file.number(f"{kind}.feed_forward_length")),
        "num_hidden_layers": int(file.number(f"{kind}.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(file.number(f"{kind}.attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": int(file.number(f"{kind}.context_length")),
        "rms_norm_eps": file.number(f"{kind}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {} if kind == "gemma3" else _rope(file, kind, head_dim),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": _dtype(file),
    } | (_gemma3(file, head_dim) if kind == "gemma3" else _experts(file, kind))


def _experts(file: GgufFile, kind: str) -> dict[str, object]:
    """What only mixtures have; sizes are those of the tensors, which every file has."""
    count = int(file.number(f"{kind}.expert_count", 0))
    if not count:
        return {}
    parts = {"ffn_gate_exps": "moe_intermediate_size", "ffn_gate_shexp": "shared_expert_intermediate_size"}
    sizes: dict[str, object] = {}
    dense: list[int] = []
    for layer in range(int(file.number(f"{kind}.block_count"))):
        found = {key: file.tensors.get(f"blk.{layer}.{part}.weight") for part, key in parts.items()}
        sizes |= {key: tensor.shape[-2] for key, tensor in found.items() if tensor is not None}
        dense += [layer] if found["moe_intermediate_size"] is None else []
    return sizes | {
        "num_experts": count,
        "num_experts_per_tok": int(file.number(f"{kind}.expert_used_count")),
        # llama.cpp knows it of the family, and no file says it
        "norm_topk_prob": kind != "qwen2moe",
        "mlp_only_layers": dense,
    }


def _gemma3(file: GgufFile, head_dim: int) -> dict[str, object]:
    """What only Gemma 3 has. The file leaves out what llama.cpp knows: the pattern, and the base of sliding layers."""
    scaling = file.text("gemma3.rope.scaling.type", "default")
    whole = {"rope_type": scaling, "rope_theta": file.number("gemma3.rope.freq_base", 1e6)}
    local = {"rope_type": "default", "rope_theta": file.number("gemma3.rope.freq_base_swa", 10_000.0)}
    pattern = int(file.number("gemma3.attention.sliding_window_pattern", 6))
    return {
        "rope_parameters": {"full_attention": whole, "sliding_attention": local},
        "query_pre_attn_scalar": head_dim,
        "sliding_window": int(file.number("gemma3.attention.sliding_window")),
        "layer_types": layer_kinds(int(file.number("gemma3.block_count")), pattern),
    }


def tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer of the metadata: byte-level BPE, or SentencePiece as Gemma uses it."""
    kind, pre = file.text("tokenizer.ggml.model"), file.text("tokenizer.ggml.pre", "default")
    if kind == "llama" and file.text("general.architecture") == "gemma3":
        return _sentencepiece(file)
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise ConfigError(
            f"{file.path}: its tokenizer {kind!r} with pre-tokenizer {pre!r} cannot be built from the file",
            key="model.source",
            suggestion=f"use its Hugging Face folder; byte-level BPE can be built: {', '.join(_PRE_TOKENIZERS)}",
        )
    tokens = file.strings("tokenizer.ggml.tokens")
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in file.strings("tokenizer.ggml.merges"))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if any(part not in vocabulary for left, right in merges for part in (left, right, left + right)):
        raise ConfigError(f"{file.path}: its tokenizer merges parts that are no tokens", key="model.source")
    # Llama 3 takes a word that is a token whole, without looking at the merges.
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        built.normalizer = normalizers.NFC()
    built.pre_tokenizer = _pre_tokenizer(pre)
    built.decoder = decoders.ByteLevel()
    built.post_processor = _post_processor(file, tokens)
    _add_special(file, built, tokens)
    return built


def _sentencepiece(file: GgufFile) -> Tokenizer:
    tokens, scores = file.strings("tokenizer.ggml.tokens"), file.metadata.get("tokenizer.ggml.scores")
    kinds, unknown = file.metadata.get("tokenizer.ggml.token_type"), _token(file, "unknown", tokens)
    if not isinstance(scores, list) or not isinstance(kinds, list) or not len(scores) == len(kinds) == len(tokens):
        what = f"{file.path}: tokenizer.ggml.scores or token_type does not match the tokens"
        raise ConfigError(what, key="model.source")
    if file.metadata.get("tokenizer.ggml.add_space_prefix", True):
        raise ConfigError(f"{file.path}: tokenizer.ggml.add_space_prefix is not supported", key="model.source")
    built = sentencepiece(tokens, [float(s) for s in scores], [int(k) for k in kinds], unknown)
    if begin := _beginning(file, tokens):
        built.post_processor = begin
    _add_special(file, built, tokens)
    return built


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    """How a text falls into words, by llama.cpp's name for it."""
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if pre in ("gpt-2", "default"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = Regex(_LLAMA3_SPLIT if pre == "llama-bpe" else _QWEN2_SPLIT)
    split = pre_tokenizers.Split(words, "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _post_processor(file: GgufFile, tokens: list[str]) -> processors.PostProcessor:
    offsets, begin = processors.ByteLevel(trim_offsets=False), _beginning(file, tokens)
    return offsets if begin is None else processors.Sequence([offsets, begin])


def _beginning(file: GgufFile, tokens: list[str]) -> processors.PostProcessor | None:
    """What puts the token for the beginning before a text, if the file asks for it."""
    bos = _token(file, "bos", tokens)
    if not file.metadata.get("tokenizer.ggml.add_bos_token") or bos is None:
        return None
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
    )


def _add_special(file: GgufFile, built: Tokenizer, tokens: list[str]) -> None:
    """Tokens that are found in a text before anything else; control tokens among them are no text."""
    kinds = file.metadata.get("tokenizer.ggml.token_type", [])
    if not isinstance(kinds, list) or len(kinds) not in (0, len(tokens)):
        raise ConfigError(f"{file.path}: tokenizer.ggml.token_type does not match the tokens", key="model.source")
    listed = list(zip(tokens, kinds, strict=False))
    built.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, kind in listed if kind == _CONTROL])
    built.add_tokens([AddedToken(t, normalized=False) for t, kind in listed if kind == _USER_DEFINED])


def _token(file: GgufFile, name: str, tokens: list[str]) -> str | None:
    index = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None


def _rope(file: GgufFile, kind: str, head_dim: int) -> dict[str, object]:
    """Base and scaling. Any scaling is passed on by its name, for ``read_config`` to take or refuse."""
    theta = file.number(f"{kind}.rope.freq_base", 10_000.0)
    if "rope_freqs.weight" in file.tensors:
        return {"rope_theta": theta} | _llama3_scaling(file, theta, head_dim)
    return {"rope_theta": theta, "rope_type": file.text(f"{kind}.rope.scaling.type", "default")}


def _llama3_scaling(file: GgufFile, theta: float, head_dim: int) -> dict[str, object]:
    """Llama 3's parameters from the divisors that the file holds instead, one a frequency.

    The largest divisor is the factor; the other parameters are those of every Llama 3 release, and the divisors that
    follow from them must be the file's.
    """
    tensor = file.tensors["rope_freqs.weight"]
    if tensor.type is not TensorType.F32 or tensor.shape != (head_dim // 2,):
        raise ConfigError(f"{file.path}: rope_freqs.weight is not one float32 a frequency", key="model.source")
    divisors = file.blocks("rope_freqs.weight").reshape(-1).view(np.float32)
    factor = float(divisors.max())
    turns = _LLAMA3_CONTEXT * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    smooth = np.clip((turns - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW), 0, 1)
    if not np.allclose(divisors, 1 / (smooth + (1 - smooth) / factor), rtol=1e-3):
        raise ConfigError(f"{file.path}: its rope scaling is not Llama 3's", key="model.source")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
    }


def _dtype(file: GgufFile) -> str:
    """Half precision where the matrices are stored so; what is dequantised is float32."""
    types = {tensor.type for tensor in file.tensors.values()}
    if TensorType.BF16 in types:
        return "bfloat16"
    return "float16" if TensorType.F16 in types else "float32"


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2))
