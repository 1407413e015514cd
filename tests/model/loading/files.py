"""Small model files, written by the libraries that define their formats."""

import zipfile
from pathlib import Path

import gguf
import numpy as np

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, FFN, LAYERS = 4, 2, 8, 32, 64, 2
THETA = 500_000.0
ALPHABET = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
"""The 256 letters that a byte-level vocabulary writes bytes with."""
SPECIAL = ["<|unk|>", "<|im_start|>", "<|im_end|>"]
MERGED = ["he", "ll", "hell", "xyz"]
TOKENS = [*SPECIAL, *ALPHABET, *MERGED]
MERGES = ["h e", "l l", "he ll"]  # none leads to xyz
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """The tensors of a tiny Llama, float32, as a GGUF file names them."""
    draw = np.random.default_rng(seed)
    layer = {
        "attn_norm": (HIDDEN,),
        "attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_output": (HIDDEN, HEADS * HEAD_DIM),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (FFN, HIDDEN),
        "ffn_up": (FFN, HIDDEN),
        "ffn_down": (HIDDEN, FFN),
    }
    shapes = {f"blk.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in layer.items()}
    shapes |= {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)}
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_tensors(path: Path, tensors: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]], arch: str = "llama"):
    """A GGUF file of stored tensors (quantised ones as bytes) and the metadata that a Llama needs."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(THETA)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, (stored, kind) in tensors.items():
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(path: Path, arch: str = "llama", seed: int = 0) -> None:
    """A whole tiny model in float32."""
    tensors = {name: (array, gguf.GGMLQuantizationType.F32) for name, array in weights(seed).items()}
    write_tensors(path, tensors, arch)


def write_wheel(path: Path, members: dict[str, bytes]) -> None:
    """A wheel with these members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
