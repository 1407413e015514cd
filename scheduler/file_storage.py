"""The storage tier in files: one file a page, named by what it holds, bounded, safe against crashes.

A name is the end of a chain of SHA-256 digests over the fingerprint of model and layout, the namespace, and the token
ids of every page from the first on: equal names hold equal KV, in any process at any time. A file is written under
another name, flushed to the disk and renamed, and carries a digest of its content; whatever does not agree is no page.
"""

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

from scheduler.copies import Chain

MAGIC: Final = b"RADJAXKV1\n"
DIGEST_BYTES: Final = 32
HEADER_BYTES: Final = len(MAGIC) + DIGEST_BYTES
SUFFIX: Final = ".kv"
UNFINISHED: Final = ".part"
NAME_LENGTH: Final = 2 * DIGEST_BYTES

logger = logging.getLogger(__name__)


class Storage(Protocol):
    """Pages by name, beyond the life of a process. Used from one thread."""

    def __len__(self) -> int:
        """Pages that it holds."""
        ...

    def has(self, name: str) -> bool:
        """Whether it seems to hold a page."""
        ...

    def get(self, name: str) -> bytes | None:
        """A page; None if it is not there whole."""
        ...

    def put(self, name: str, read: Callable[[], bytes]) -> bool:
        """Keep a page, which is read only if it is not there yet; False if there is no room or no way to write it."""
        ...

    def clear(self) -> int:
        """Delete all; returns how many pages that was."""
        ...


def page_names(fingerprint: bytes, chain: Chain, page_bytes: int) -> Iterator[str]:
    """Names of the pages of a chain from its first on; ``page_bytes`` of ``chain.key`` make a page."""
    digest = hashlib.sha256(b"%d %d " % (len(fingerprint), len(chain.namespace)) + fingerprint + chain.namespace)
    link = digest.digest()
    for index in range(len(chain.key) // page_bytes):
        link = hashlib.sha256(link + chain.key[index * page_bytes : (index + 1) * page_bytes]).digest()
        if index >= chain.first:
            yield link.hex()


class FileStorage:
    """Files in a folder, those not used for longest deleted first.

    Args:
        folder: made if it is not there; what in it is not named like a page is left alone.
        limit_bytes: of all files together.

    Raises:
        OSError: the folder cannot be made, read or written.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()
        """By name, the one not used for longest first."""
        self._total = 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / f"probe{UNFINISHED}").write_bytes(b"")
        self._scan()
        self._make_room(0)

    def __len__(self) -> int:
        return len(self._sizes)

    def has(self, name: str) -> bool:
        """See ``Storage``."""
        return name in self._sizes

    def get(self, name: str) -> bytes | None:
        """See ``Storage``. A file that is torn or another's is deleted."""
        if name not in self._sizes:
            return None
        try:
            data = self._path(name).read_bytes()
            body = data[HEADER_BYTES:]
            if data[:HEADER_BYTES] != _header(name, body):
                logger.warning("%s is damaged and is deleted", self._path(name))
                self._drop(name)
                return None
            os.utime(self._path(name))  # so that the order of use outlives this process
        except OSError as error:
            logger.warning("cannot read a stored page: %s", error)
            self._forget(name)
            return None
        self._sizes.move_to_end(name)
        return body

    def put(self, name: str, read: Callable[[], bytes]) -> bool:
        """See ``Storage``."""
        if name in self._sizes:
            self._sizes.move_to_end(name)
            return True
        body = read()
        size = HEADER_BYTES + len(body)
        if size > self._limit_bytes:
            return False
        self._make_room(size)
        unfinished = self._folder / f"{name}{UNFINISHED}"
        try:
            with unfinished.open("wb") as file:
                file.write(_header(name, body))
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(self._path(name))
        except OSError as error:
            logger.warning("cannot store a page: %s", error)
            unfinished.unlink(missing_ok=True)
            return False
        self._sizes[name] = size
        self._total += size
        return True

    def clear(self) -> int:
        """See ``Storage``."""
        count = len(self._sizes)
        for name in list(self._sizes):
            self._drop(name)
        return count

    def _scan(self) -> None:
        """Learn what earlier processes left, and delete what they did not finish."""
        found: list[tuple[int, str, int]] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                name = entry.name.removesuffix(SUFFIX)
                if entry.name.endswith(UNFINISHED):
                    Path(entry.path).unlink(missing_ok=True)
                elif entry.name.endswith(SUFFIX) and len(name) == NAME_LENGTH and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime_ns, name, status.st_size))
        for _, name, size in sorted(found):
            self._sizes[name] = size
            self._total += size

    def _make_room(self, size: int) -> None:
        while self._sizes and self._total + size > self._limit_bytes:
            self._drop(next(iter(self._sizes)))

    def _drop(self, name: str) -> None:
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("cannot delete a stored page: %s", error)
        self._forget(name)

    def _forget(self, name: str) -> None:
        self._total -= self._sizes.pop(name)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{SUFFIX}"


def _header(name: str, body: bytes) -> bytes:
    """What a file begins with: of which page it is, too, so that a renamed file is no page."""
    return MAGIC + hashlib.sha256(bytes.fromhex(name) + body).digest()
