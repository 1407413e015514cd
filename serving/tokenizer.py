"""Text to token ids, off the event loop, from ``tokenizer.json`` alone."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tokenizers import Tokenizer as HFTokenizer

from serving.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer

_THREADS = 2
_INLINE_CHARS = 2048
"""Shorter texts are encoded at once: a thread hop costs more than they do."""


class _Decoder(msgspec.Struct):
    type: str


class _TokenizerFile(msgspec.Struct):
    decoder: _Decoder | None = None


class _AddedToken(msgspec.Struct):
    content: str


class TokenizerConfig(msgspec.Struct):
    """The part of ``tokenizer_config.json`` that says more than ``tokenizer.json``."""

    bos_token: str | _AddedToken | None = None
    eos_token: str | _AddedToken | None = None
    add_bos_token: bool | None = None
    chat_template: str | list[dict[str, str]] | None = None


@dataclass(slots=True, frozen=True)
class Segment:
    """A stretch of a prompt. In ``literal`` ones the names of special tokens are plain text."""

    text: str
    literal: bool


class Tokenizer:
    """Encodes and decodes; threads may share it."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        raw = path.read_bytes()
        self.config = _read_config(folder)
        self._tokenizer = HFTokenizer.from_str(raw.decode())
        self._literal = HFTokenizer.from_str(raw.decode())
        self._literal.encode_special_tokens = True
        for tokenizer in (self._tokenizer, self._literal):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        decoder = msgspec.json.decode(raw, type=_TokenizerFile).decoder
        self._byte_level = decoder is not None and decoder.type == "ByteLevel"
        self._added = self._tokenizer.get_added_tokens_decoder()
        self._bytes: dict[int, bytes] = {}
        self._pool = ThreadPoolExecutor(_THREADS, "tokenize")

    @property
    def vocab_size(self) -> int:
        """Number of ids that stand for something."""
        return self._tokenizer.get_vocab_size()

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The names that stand for one special token each wherever they appear."""
        return tuple(token.content for token in self._added.values() if token.special)

    @property
    def bos_token(self) -> str:
        """The name of the first token, or nothing."""
        return _content(self.config.bos_token)

    @property
    def eos_token(self) -> str:
        """The name of the last token, or nothing."""
        return _content(self.config.eos_token)

    async def encode(self, segments: Sequence[Segment], *, add_special_tokens: bool) -> list[int]:
        """The ids of the segments one after the other; long ones on a thread."""
        if sum(len(segment.text) for segment in segments) <= _INLINE_CHARS:
            return self.encode_now(segments, add_special_tokens=add_special_tokens)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._pool, lambda: self.encode_now(segments, add_special_tokens=add_special_tokens)
        )

    def encode_now(self, segments: Sequence[Segment], *, add_special_tokens: bool) -> list[int]:
        """As ``encode``, blocking. Special tokens of the model are put around the whole when asked."""
        if len(segments) == 1 and not segments[0].literal:
            ids: list[int] = self._tokenizer.encode(segments[0].text, add_special_tokens=add_special_tokens).ids
        else:
            ids = []
            for segment in segments:
                tokenizer = self._literal if segment.literal else self._tokenizer
                ids += tokenizer.encode(segment.text, add_special_tokens=False).ids
        if add_special_tokens and self.config.add_bos_token:
            bos = self._tokenizer.token_to_id(self.bos_token)
            if bos is not None and ids[:1] != [bos]:
                ids = [bos, *ids]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Plain decoding."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def detokenizer(self, *, skip_special_tokens: bool) -> Detokenizer:
        """Incremental decoding of one answer."""
        if self._byte_level:
            return ByteDetokenizer(self._shown_bytes if skip_special_tokens else self.token_bytes)
        return WindowDetokenizer(lambda ids: self.decode(ids, skip_special_tokens=skip_special_tokens))

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; nothing for an id outside the vocabulary."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._find_bytes(token)
        return known

    def token_text(self, token: int) -> str:
        """A token by itself; bytes that are no text become replacement characters."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def _shown_bytes(self, token: int) -> bytes:
        added = self._added.get(token)
        return b"" if added is not None and added.special else self.token_bytes(token)

    def _find_bytes(self, token: int) -> bytes:
        if (added := self._added.get(token)) is not None:
            return added.content.encode()
        name = self._tokenizer.id_to_token(token)
        if name is None:
            return b""
        if self._byte_level:
            return bytes_of_name(name)
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes.fromhex(name[3:5])
        return name.replace("\u2581", " ").encode()


def bytes_of_name(name: str) -> bytes:
    """Undo GPT-2's alphabet, in which every byte is a printable character; other names stand for themselves."""
    try:
        return bytes(_BYTES[char] for char in name)
    except KeyError:
        return name.encode()


def _alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTES = _alphabet()


def _read_config(folder: Path) -> TokenizerConfig:
    path = folder / "tokenizer_config.json"
    return msgspec.json.decode(path.read_bytes(), type=TokenizerConfig) if path.exists() else TokenizerConfig()


def _content(token: str | _AddedToken | None) -> str:
    return token.content if isinstance(token, _AddedToken) else token or ""
