"""Tensors of a GGUF file, dequantised when read, under their Hugging Face names."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import quants
from numpy.typing import NDArray

from configs.errors import ConfigError
from model.loading.folder import GGUF
from model.loading.gguf_file import BLOCKS, GgufFile, TensorType, open_gguf

_STORED = {TensorType.F32: np.float32, TensorType.F16: np.float16, TensorType.BF16: ml_dtypes.bfloat16}
_QUANTS = {
    TensorType.Q4_0: quants.Q4_0,
    TensorType.Q4_1: quants.Q4_1,
    TensorType.Q5_0: quants.Q5_0,
    TensorType.Q5_1: quants.Q5_1,
    TensorType.Q8_0: quants.Q8_0,
    TensorType.Q2_K: quants.Q2_K,
    TensorType.Q3_K: quants.Q3_K,
    TensorType.Q4_K: quants.Q4_K,
    TensorType.Q5_K: quants.Q5_K,
    TensorType.Q6_K: quants.Q6_K,
    TensorType.IQ4_NL: quants.IQ4_NL,
}
_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA3_LAYER = _LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_QWEN_LAYER = _LAYER | {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
"""``{}`` stands for an expert; the file has all experts of a layer in one tensor."""
_MIXTRAL_LAYER = _LAYER | {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
_LAYERS = {
    "gemma3": _GEMMA3_LAYER,
    "qwen2moe": _QWEN_LAYER,
    "qwen3moe": _QWEN_LAYER,
    "mixtral": _MIXTRAL_LAYER,
}
_NAME = re.compile(r"(?:blk\.(\d{1,6})\.)?([a-z_]+)\.(weight|bias)")
_IGNORED = frozenset({"rope_freqs.weight"})
"""Not weights: the file's way of writing Llama 3's rope scaling, which config.json has instead."""

# Values dequantised at once: enough that two threads seldom wait for each other, few enough for the processor's cache.
# SmolLM2's 134 million values (Q4_1) take one thread and two threads, in seconds: 0.43 and 0.55 at 8,192; 0.27 and 0.27
# at 32,768; 0.23 and 0.17 at 131,072; 0.88 and 0.22 at 524,288 (2026-11, two cores).
_PIECE = 131_072


class GgufCheckpoint:
    """The tensors of ``model.gguf`` in a model folder."""

    __slots__ = ("_file", "_folded", "_heads", "_places")

    def __init__(self, folder: Path) -> None:
        """Read the header.

        Raises:
            ConfigError: the file is damaged, or has a tensor whose meaning is unknown.
        """
        self._file = open_gguf(folder / GGUF)
        self._heads = _permuted_heads(self._file)
        kind = family(self._file)
        # the converter folds into the norms what Gemma adds to them
        self._folded = kind == "gemma3"
        self._places = {
            place: at
            for name in self._file.tensors
            if name not in _IGNORED
            for place, at in _places(self._file, name, hugging_face_name(self._file.path, name, kind))
        }

    def names(self) -> Sequence[str]:
        """Hugging Face names."""
        return tuple(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape, rows first."""
        stored, expert = self._place(name)
        shape = self._file.tensors[stored].shape
        return shape if expert is None else shape[1:]

    def read(self, name: str) -> NDArray[Any]:
        """Dequantise one tensor to float32; bfloat16 and float16 stay as they are."""
        stored, expert = self._place(name)
        tensor, shape = self._file.tensors[stored], self.shape(name)
        blocks = self._file.blocks(stored)
        if expert is not None:
            blocks = blocks.reshape(tensor.shape[0], -1, blocks.shape[-1])[expert]
        heads = self._heads.get(stored.split(".")[-2])
        if heads:
            blocks = _unpermuted(blocks, shape[0], heads)
        if tensor.type in _STORED:
            values = np.ascontiguousarray(blocks).reshape(-1).view(_STORED[tensor.type]).reshape(shape)
            return values.astype(np.float32) - 1 if self._folded and name.endswith("norm.weight") else values
        return _dequantised(blocks, tensor.type).reshape(shape)

    def _place(self, name: str) -> tuple[str, int | None]:
        if name not in self._places:
            raise ConfigError(f"{self._file.path} has no tensor for {name}", key="model.source")
        return self._places[name]


def family(file: GgufFile) -> str:
    """The file's architecture; llama.cpp has no name of its own for Mixtral, a llama with experts."""
    kind = file.text("general.architecture")
    return "mixtral" if kind == "llama" and file.number("llama.expert_count", 0) else kind


def _places(file: GgufFile, stored: str, name: str) -> list[tuple[str, tuple[str, int | None]]]:
    """Hugging Face names of what a tensor holds: its own, or one for each expert."""
    if "{}" not in name:
        return [(name, (stored, None))]
    return [(name.format(expert), (stored, expert)) for expert in range(file.tensors[stored].shape[0])]


def hugging_face_name(path: Path, name: str, architecture: str = "llama") -> str:
    """``blk.3.attn_q.weight`` → ``model.layers.3.self_attn.q_proj.weight``; ``{}`` in it stands for each expert.

    Raises:
        ConfigError: there is no such tensor in the architectures that are supported.
    """
    match = _NAME.fullmatch(name)
    if match:
        layer, part, kind = match.groups()
        if layer is None and part in _TOP:
            return f"{_TOP[part]}.{kind}"
        parts = _LAYERS.get(architecture, _LAYER)
        if layer is not None and part in parts:
            return f"model.layers.{layer}.{parts[part]}.{kind}"
    raise ConfigError(f"{path} has the tensor {name!r}, which no supported architecture uses", key="model.source")


def _dequantised(blocks: NDArray[np.uint8], kind: TensorType) -> NDArray[np.float32]:
    """uint8[blocks, bytes] → float32[blocks, values]."""
    values = BLOCKS[kind][0]
    out = np.empty((len(blocks), values), np.float32)
    step = _PIECE // values
    for start in range(0, len(blocks), step):
        out[start : start + step] = _QUANTS[kind].dequantize_blocks(blocks[start : start + step])
    return out


def _permuted_heads(file: GgufFile) -> dict[str, int]:
    """Heads of the projections whose rows the file holds in another order, by name.

    llama.cpp rotates neighbours, (0, 1), (2, 3) …, and its converter reorders the rows of q and k of the llama family
    to suit; Hugging Face rotates halves, (0, d/2), (1, d/2 + 1) …
    """
    if file.text("general.architecture") != "llama":
        return {}
    heads = int(file.number("llama.attention.head_count"))
    return {"attn_q": heads, "attn_k": int(file.number("llama.attention.head_count_kv", heads))}


def _unpermuted(blocks: NDArray[np.uint8], rows: int, heads: int) -> NDArray[np.uint8]:
    """The rows of q or k in Hugging Face's order; works on the stored bytes, since a block never leaves its row."""
    # shape: [blocks, bytes] -> [heads, half of the head, 2, bytes of a row]
    by_pair = blocks.reshape(heads, rows // heads // 2, 2, -1)
    return by_pair.swapaxes(1, 2).reshape(blocks.shape)
