"""The name of a page's content: a chain of SHA-256 over its tokens and all before them, equal in every process.

Without a namespace these are SGLang's hashes (int32 token ids, little endian, after the digest of the page before).
"""

from collections.abc import Sequence
from hashlib import sha256

from model.interface import PageId

_NAMESPACE = b"radjax-namespace-v1\0"


def chain_start(namespace: bytes) -> bytes:
    """What the first page of a prefix is chained to: nothing, or the digest of the namespace."""
    return sha256(_NAMESPACE + namespace).digest() if namespace else b""


def page_digest(before: bytes, key: bytes) -> bytes:
    """The digest of a page that holds ``key`` (int32 token ids) and follows the page of digest ``before``."""
    return sha256(before + key).digest()


def short_hash(digest: bytes) -> int:
    """Its first 64 bits as a signed number, as the events of SGLang and vLLM carry it."""
    return int.from_bytes(digest[:8], "big", signed=True)


class PageDigests:
    """The digests of the pages that one medium holds."""

    def __init__(self, page_size: int) -> None:
        self._page_bytes = 4 * page_size
        self._digests: dict[PageId, bytes] = {}

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, start: bytes, key: bytes, pages: Sequence[PageId]) -> list[int]:
        """Chain ``pages``, which hold ``key``, to the digest ``start``; returns their short hashes."""
        size, digest, hashes = self._page_bytes, start, list[int]()
        for index, page in enumerate(pages):
            digest = page_digest(digest, key[index * size : (index + 1) * size])
            self._digests[page] = digest
            hashes.append(short_hash(digest))
        return hashes

    def of(self, page: PageId) -> bytes:
        """The digest of a page that is there."""
        return self._digests[page]

    def take(self, pages: Sequence[PageId]) -> list[int]:
        """Forget pages; returns their short hashes."""
        return [short_hash(self._digests.pop(page)) for page in pages]
