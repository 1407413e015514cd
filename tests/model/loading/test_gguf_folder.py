"""What a GGUF file says of its model, as the files of a Hugging Face folder."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from tokenizers import Tokenizer

from configs.errors import ConfigError
from model.loading.folder import model_folder
from model.loading.gguf_file import GgufFile, open_gguf
from model.loading.gguf_folder import tokenizer, write_companions
from model.loading.hf_config import read_config
from model.spec import RopeScaling
from tests.model.loading.files import HEAD_DIM, THETA, TOKENS, weights, write_gguf, write_tensors


def changed(path: Path, **metadata: object) -> GgufFile:
    """The tiny model with other metadata; ``_`` stands for a dot."""
    write_gguf(path)
    file = open_gguf(path)
    return GgufFile(
        file.path, file.metadata | {k.replace("__", "."): v for k, v in metadata.items()}, file.tensors, file.memory
    )


def test_the_vocabulary_is_the_files_and_every_byte_comes_back(tmp_path: Path):
    built = tokenizer(changed(tmp_path / "m.gguf"))
    assert [built.id_to_token(i) for i in range(built.get_vocab_size())] == TOKENS
    text = "hello\tWörld 日本 🎉\r\n  \x00\x7f"
    assert built.decode(built.encode(text).ids) == text


def test_control_tokens_are_found_in_a_text_and_left_out_of_an_answer(tmp_path: Path):
    built = tokenizer(changed(tmp_path / "m.gguf"))
    ids = built.encode("<|im_start|>hell<|im_end|>").ids
    assert ids == [1, TOKENS.index("hell"), 2]
    assert built.decode(ids) == "hell"


def test_a_beginning_of_text_is_added_where_the_file_asks_for_it(tmp_path: Path):
    file = changed(tmp_path / "m.gguf", tokenizer__ggml__add_bos_token=True)
    assert tokenizer(file).encode("hell").ids == [1, TOKENS.index("hell")]
    assert tokenizer(changed(tmp_path / "n.gguf")).encode("hell").ids == [TOKENS.index("hell")]


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("smollm", ["Ġabc", "1", "2", "3", "4", "'ll", "Ġ", "Ġx"]),
        ("gpt-2", ["Ġabc", "1234", "'ll", "Ġ", "Ġx"]),
        ("llama-bpe", ["Ġabc", "123", "4", "'ll", "Ġ", "Ġx"]),
        ("qwen2", ["Ġabc", "1", "2", "3", "4", "'ll", "Ġ", "Ġx"]),
    ],
)
def test_a_text_falls_into_the_words_of_its_family(pre: str, words: list[str], tmp_path: Path):
    built = tokenizer(changed(tmp_path / "m.gguf", tokenizer__ggml__pre=pre))
    assert [word for word, _ in built.pre_tokenizer.pre_tokenize_str(" abc1234'll  x")] == words


def test_only_llama_3_takes_a_word_that_is_a_token_without_merging(tmp_path: Path):
    assert tokenizer(changed(tmp_path / "m.gguf")).encode("xyz").tokens == ["x", "y", "z"]
    built = tokenizer(changed(tmp_path / "n.gguf", tokenizer__ggml__pre="llama-bpe"))
    assert built.encode("xyz").tokens == ["xyz"]


def test_only_qwen_composes_letters(tmp_path: Path):
    assert tokenizer(changed(tmp_path / "m.gguf")).normalizer is None
    built = tokenizer(changed(tmp_path / "n.gguf", tokenizer__ggml__pre="qwen2"))
    assert built.normalizer.normalize_str("e\u0301") == "\u00e9"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokenizer__ggml__model": "llama"}, "tokenizer 'llama'.*Hugging Face folder"),
        ({"tokenizer__ggml__pre": "tekken"}, "pre-tokenizer 'tekken'"),
        ({"tokenizer__ggml__merges": ["h x"]}, "merges parts that are no tokens"),
        ({"tokenizer__ggml__merges": ["hell"]}, "merges parts that are no tokens"),
        ({"tokenizer__ggml__tokens": 3}, "not a list of strings"),
        ({"tokenizer__ggml__token_type": [1]}, "token_type does not match"),
        (
            {"general__architecture": "gemma2"},
            "'gemma2' is not supported; supported in GGUF files are llama, qwen2, qwen3, gemma3",
        ),
        ({"split__count": 3}, "one of 3 parts"),
        ({"llama__block_count": "two"}, "llama.block_count is missing"),
    ],
)
def test_what_cannot_be_built_is_refused(keys: dict[str, object], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        write_companions(changed(tmp_path / "m.gguf", **keys), tmp_path)


GEMMA3: dict[str, object] = {
    "general__architecture": "gemma3",
    "gemma3__context_length": 1024,
    "gemma3__embedding_length": 32,
    "gemma3__block_count": 7,
    "gemma3__feed_forward_length": 64,
    "gemma3__attention__head_count": 4,
    "gemma3__attention__head_count_kv": 1,
    "gemma3__attention__key_length": 16,
    "gemma3__attention__layer_norm_rms_epsilon": 1e-6,
    "gemma3__attention__sliding_window": 512,
    "gemma3__rope__freq_base": 1e6,
    "tokenizer__ggml__model": "llama",
    "tokenizer__ggml__tokens": ["<unk>", "<bos>", "<eos>", "\n\n", "\u2581", "a", "b", "ab", "<0x0A>"],
    "tokenizer__ggml__scores": [-1000.0] * 4 + [-1.0, -2.0, -3.0, -0.5, 0.0],
    "tokenizer__ggml__token_type": [3, 3, 3, 4, 1, 1, 1, 1, 6],
    "tokenizer__ggml__unknown_token_id": 0,
    "tokenizer__ggml__add_bos_token": True,
    "tokenizer__ggml__add_space_prefix": False,
}


def test_gemma_3_has_the_pattern_and_the_local_base_that_the_file_leaves_out(tmp_path: Path):
    write_companions(changed(tmp_path / "model.gguf", **GEMMA3), tmp_path)
    spec = read_config(model_folder(tmp_path))
    assert (spec.architecture, spec.head_dim, spec.query_scalar, spec.num_kv_heads) == ("gemma3", 16, 16, 1)
    assert (spec.sliding_window, spec.sliding_layers) == (512, (True,) * 5 + (False, True))
    assert (spec.rope_theta, spec.local_rope_theta) == (1e6, 1e4)
    assert spec.eos_token_ids == (2,)


def test_gemma_3s_pieces_are_merged_by_score_behind_the_beginning(tmp_path: Path):
    built = tokenizer(changed(tmp_path / "m.gguf", **GEMMA3))
    assert built.encode("ab a").tokens == ["<bos>", "ab", "\u2581", "a"]
    assert built.encode("a\n\nb\n<eos>", add_special_tokens=False).ids == [5, 3, 6, 8, 2]
    assert built.decode([1, 7, 4, 5, 3, 6, 8, 2]) == "ab a\n\nb\n"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokenizer__ggml__scores": [0.0]}, "scores or token_type does not match"),
        ({"tokenizer__ggml__token_type": [1]}, "scores or token_type does not match"),
        ({"tokenizer__ggml__add_space_prefix": True}, "add_space_prefix is not supported"),
        ({"gemma3__attention__sliding_window": "wide"}, "sliding_window is missing"),
    ],
)
def test_what_of_gemma_3_cannot_be_built_is_refused(keys: dict[str, object], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        write_companions(changed(tmp_path / "m.gguf", **GEMMA3 | keys), tmp_path)


def test_a_scaled_gemma_3_is_left_to_the_configuration_to_refuse(tmp_path: Path):
    write_companions(changed(tmp_path / "model.gguf", **GEMMA3, gemma3__rope__scaling__type="linear"), tmp_path)
    with pytest.raises(ConfigError, match="rope scaling of type 'linear'"):
        read_config(model_folder(tmp_path))


def rope_divisors(factor: float, theta: float, head_dim: int) -> np.ndarray:
    """Llama 3.1's scaling as its release writes it, frequency by frequency."""
    out = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (i / head_dim)
        if wavelength < 8192 / 4:
            out.append(1.0)
        elif wavelength > 8192:
            out.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


def with_divisors(path: Path, divisors: np.ndarray) -> Path:
    """The tiny model with rope divisors, in a folder with its companions."""
    tensors = {name: (array, Kind.F32) for name, array in weights().items()}
    write_tensors(path / "model.gguf", tensors | {"rope_freqs.weight": (divisors, Kind.F32)})
    write_companions(open_gguf(path / "model.gguf"), path)
    return path


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_scaling_is_found_in_its_divisors(factor: float, tmp_path: Path):
    spec = read_config(model_folder(with_divisors(tmp_path, rope_divisors(factor, THETA, HEAD_DIM))))
    assert spec.rope_scaling == RopeScaling(
        factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192
    )


def test_other_divisors_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="not Llama 3's"):
        with_divisors(tmp_path, np.array([1, 2, 3, 8], np.float32))


def test_a_scaling_that_the_file_names_is_left_to_the_configuration_to_refuse(tmp_path: Path):
    write_companions(changed(tmp_path / "model.gguf", llama__rope__scaling__type="yarn"), tmp_path)
    with pytest.raises(ConfigError, match="yarn"):
        read_config(model_folder(tmp_path))


def test_every_token_that_ends_an_answer_is_an_end(tmp_path: Path):
    keys = {"tokenizer__ggml__eot_token_id": 4, "tokenizer__ggml__eom_token_id": 2}
    write_companions(changed(tmp_path / "model.gguf", **keys), tmp_path)
    assert read_config(model_folder(tmp_path)).eos_token_ids == (2, 4)


@pytest.mark.parametrize(("kind", "dtype"), [(Kind.F32, "float32"), (Kind.BF16, "bfloat16"), (Kind.Q8_0, "float32")])
def test_the_dtype_is_that_of_the_matrices(kind: Kind, dtype: str, tmp_path: Path):
    embedding = weights()["token_embd.weight"]
    write_tensors(tmp_path / "model.gguf", {"token_embd.weight": (gguf.quants.quantize(embedding, kind), kind)})
    write_companions(open_gguf(tmp_path / "model.gguf"), tmp_path)
    assert read_config(model_folder(tmp_path)).dtype == dtype


@pytest.mark.model
def test_smollm2_has_the_token_ids_of_transformers(smollm2: Path):
    golden = json.loads((Path(__file__).parents[2] / "golden" / "tokens" / "smollm2.json").read_text())
    built = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    for entry in [*golden["texts"], *golden["chats"]]:
        assert built.encode(entry["text"]).ids == entry["ids"], entry["text"]
        assert built.decode(entry["ids"], skip_special_tokens=False) == entry["text"]
