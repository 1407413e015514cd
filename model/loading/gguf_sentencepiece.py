"""The SentencePiece tokenizer of a GGUF file: pieces with scores, as llama.cpp's converter stores them.

SentencePiece merges, again and again, the two neighbours whose union has the best score (Kudo and Richardson, 2018).
Byte-pair merges in the order of these scores do the same: one for every way in which a piece falls into two pieces.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers

NORMAL = 1
"""As ``tokenizer.ggml.token_type`` numbers the kinds of piece: one that merging may give."""
_SPACE = "\u2581"


def sentencepiece(
    pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[int], unknown: str | None
) -> Tokenizer:
    """The tokenizer without special tokens and without what is put before a text.

    Args:
      pieces: by token id.
      scores: by token id; those of normal pieces count.
      kinds: by token id.
      unknown: the piece that stands for what no piece and no byte does.
    """
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(
        vocab=vocabulary,
        merges=ranked_merges(pieces, scores, kinds),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    built = Tokenizer(model)
    built.normalizer = normalizers.Replace(" ", _SPACE)
    built.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return built


def ranked_merges(pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[int]) -> list[tuple[str, str]]:
    """Pairs of pieces that make a normal piece, best first."""
    normal = {piece: score for piece, score, kind in zip(pieces, scores, kinds, strict=True) if kind == NORMAL}
    merges: list[tuple[str, str]] = []
    for piece in sorted(normal, key=lambda piece: -normal[piece]):
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        merges += [(left, right) for left, right in cuts if left in normal and right in normal]
    return merges
