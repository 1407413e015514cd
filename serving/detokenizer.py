"""Token ids to text as they come, never showing half a character.

Byte-level vocabularies (GPT-2's alphabet: Llama 3, Qwen, SmolLM) become bytes by a table and text by a UTF-8 decoder
that keeps an unfinished character. Any other is decoded over a short window that begins where text was last complete.
"""

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"

TokenBytes = Callable[[int], bytes]
"""The bytes that a token stands for; empty when it is not to be shown."""
Decode = Callable[[Sequence[int]], str]
"""Plain decoding of a whole list of ids."""


class Detokenizer(Protocol):
    """The text of one answer, incrementally. Joined, all that it gives equals plain decoding."""

    def push(self, token: int) -> str:
        """The characters that this token completed."""
        ...

    def finish(self) -> str:
        """What is left when no token follows."""
        ...


class ByteDetokenizer:
    """For byte-level vocabularies."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completed."""
        return self._decode.decode(self._token_bytes(token))

    def finish(self) -> str:
        """Half a character at the end, as a replacement character."""
        return self._decode.decode(b"", True)


class WindowDetokenizer:
    """For every other vocabulary: decodes ``[prefix, end)`` and gives what is new since ``[prefix, read)``.

    Both borders lie where the text was complete, so that a window never begins inside a character.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        """From prefix on."""
        self._read = 0
        self._given = ""
        """The text of ``[prefix, read)``."""

    def push(self, token: int) -> str:
        """The characters that this token completed."""
        self._ids.append(token)
        text = self._decode(self._ids)
        new = text[len(self._given) :]
        if not new or text.endswith(REPLACEMENT):
            return ""
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        self._given = self._decode(self._ids)
        return new

    def finish(self) -> str:
        """Text held back because it ended in a replacement character."""
        return self._decode(self._ids)[len(self._given) :]
