from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models

from serving.detokenizer import REPLACEMENT, WindowDetokenizer
from serving.tokenizer import Segment, Tokenizer
from tests.serving.fakes import CORPUS


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


@given(ids=st.lists(st.integers(0, 340), max_size=60), skip=st.booleans())
def test_incremental_text_equals_plain_decoding_of_any_ids(tokenizer, ids, skip):
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.finish() == tokenizer.decode(ids, skip_special_tokens=skip)


@given(text=st.text(max_size=40))
def test_half_a_character_is_never_shown(tokenizer, text):
    text = text.replace(REPLACEMENT, "")
    ids = tokenizer.encode_now([Segment(text, literal=True)], add_special_tokens=False)
    detokenizer = tokenizer.detokenizer(skip_special_tokens=False)
    shown = ""
    for token in ids:
        shown += detokenizer.push(token)
        assert text.startswith(shown)
    assert shown + detokenizer.finish() == text


def byte_fallback_tokenizer() -> HFTokenizer:
    """Llama 2's kind of vocabulary: words with a low line for a space, and bytes."""
    words = ["<unk>", "▁a", "▁b", "c", "é", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = HFTokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


TOKEN_RUNS = st.lists(
    st.sampled_from([[1], [2], [3], [4], *[[5 + b for b in ch.encode()] for ch in "aé日🙂"]]), max_size=60
)


@given(runs=TOKEN_RUNS)
def test_vocabularies_with_byte_fallback_decode_incrementally_too(runs):
    ids = [token for run in runs for token in run]
    decode = byte_fallback_tokenizer().decode
    detokenizer = WindowDetokenizer(lambda window: decode(list(window)))
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.finish() == decode(ids)
    assert REPLACEMENT not in "".join(pieces)


@pytest.mark.parametrize("text", CORPUS)
def test_single_tokens_join_to_the_text(tokenizer, text):
    ids = tokenizer.encode_now([Segment(text, literal=False)], add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
