"""SentencePiece pieces with scores, as byte-pair merges."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from model.loading.gguf_sentencepiece import sentencepiece

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACE = "\u2581"


def build(pieces: list[str]):
    """A tokenizer of these pieces, the best first, and of every byte."""
    tokens = ["<unk>", *BYTES, *pieces]
    scores = [0.0] * 257 + [-float(i) for i in range(len(pieces))]
    return sentencepiece(tokens, scores, [2] + [6] * 256 + [1] * len(pieces), "<unk>")


def merged(text: str, pieces: list[str]) -> list[str]:
    """SentencePiece's rule: merge the two neighbours whose union is best, the left ones of equals, until none is."""
    parts = list(text)
    while True:
        found = [(pieces.index(a + b), i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in pieces]
        if not found:
            return parts
        _, at = min(found)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


longer = st.text(alphabet=f"ab{SPACE}", min_size=2, max_size=5)


@given(st.lists(longer, unique=True, max_size=12), st.text(alphabet="ab ", max_size=20))
def test_a_text_falls_into_the_pieces_that_the_rule_gives(some: list[str], text: str):
    # what two equal-scored ways lead to is the same piece, so that their order cannot matter
    pieces = [*some, "a", "b", SPACE]
    assert build(pieces).encode(text).tokens == merged(text.replace(" ", SPACE), pieces)


@given(st.text())
def test_every_text_comes_back(text: str):
    built = build(["ab", "a", "b", SPACE])
    # the piece that stands for a space is a space when it comes back
    assert built.decode(built.encode(text).ids) == text.replace(SPACE, " ")


def test_a_better_piece_wins_over_the_one_further_left():
    assert build(["bc", "ab", "a", "b", "c"]).encode("abc").tokens == ["a", "bc"]
    assert build(["ab", "bc", "a", "b", "c"]).encode("abc").tokens == ["ab", "c"]


def test_no_space_is_put_before_a_text():
    assert build([SPACE, "a"]).encode("a a").tokens == ["a", SPACE, "a"]


def test_pieces_of_other_kinds_are_not_merged_from_parts():
    built = sentencepiece(["<unk>", "a", "b", "ab"], [0.0, -1.0, -2.0, 5.0], [2, 1, 1, 4], "<unk>")
    assert built.encode("ab").tokens == ["a", "b"]
