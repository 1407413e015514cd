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
_NAME = re.compile(r"(?:blk\.(\d{1,6})\.)?([a-z_]+)\.(weight|bias)")
_IGNORED = frozenset({"rope_freqs.weight"})
"""Not weights: the file's way of writing Llama 3's rope scaling, which config.json has instead."""

# Values dequantised at once: enough that two threads seldom wait for each other, few enough for the processor's cache.
# SmolLM2's 134 million values (Q4_1) take one thread and two threads, in seconds: 0.43 and 0.55 at 8,192; 0.27 and 0.27
# at 32,768; 0.23 and 0.17 at 131,072; 0.88 and 0.22 at 524,288 (2026-11, two cores).
_PIECE = 131_072


class GgufCheckpoint:
    """The tensors of ``model.gguf`` in a model folder."""

    __slots__ = ("_file", "_folded", "_heads", "_stored_names")

    def __init__(self, folder: Path) -> None:
        """Read the header.

        Raises:
            ConfigError: the file is damaged, or has a tensor whose meaning is unknown.
        """
        self._file = open_gguf(folder / GGUF)
        self._heads = _permuted_heads(self._file)
        kind = self._file.text("general.architecture")
        # the converter folds into the norms what Gemma adds to them
        self._folded = kind == "gemma3"
        self._stored_names = {
            hugging_face_name(self._file.path, name, kind): name for name in self._file.tensors if name not in _IGNORED
        }

    def names(self) -> Sequence[str]:
        """Hugging Face names."""
        return tuple(self._stored_names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape, rows first."""
        return self._file.tensors[self._stored_name(name)].shape

    def read(self, name: str) -> NDArray[Any]:
        """Dequantise one tensor to float32; bfloat16 and float16 stay as they are."""
        stored = self._stored_name(name)
        tensor = self._file.tensors[stored]
        blocks = self._file.blocks(stored)
        heads = self._heads.get(stored.split(".")[-2])
        if heads:
            blocks = _unpermuted(blocks, tensor.shape[0], heads)
        if tensor.type in _STORED:
            values = np.ascontiguousarray(blocks).reshape(-1).view(_STORED[tensor.type]).reshape(tensor.shape)
            return values.astype(np.float32) - 1 if self._folded and name.endswith("norm.weight") else values
        return _dequantised(blocks, tensor.type).reshape(tensor.shape)

    def _stored_name(self, name: str) -> str:
        if name not in self._stored_names:
            raise ConfigError(f"{self._file.path} has no tensor for {name}", key="model.source")
        return self._stored_names[name]


def hugging_face_name(path: Path, name: str, architecture: str = "llama") -> str:
    """``blk.3.attn_q.weight`` → ``model.layers.3.self_attn.q_proj.weight``.

    Raises:
        ConfigError: there is no such tensor in the architectures that are supported.
    """
    match = _NAME.fullmatch(name)
    if match:
        layer, part, kind = match.groups()
        if layer is None and part in _TOP:
            return f"{_TOP[part]}.{kind}"
        parts = _GEMMA3_LAYER if architecture == "gemma3" else _LAYER
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
