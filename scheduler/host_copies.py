"""Moves pages for the engine: orders copies on its thread, waits for them and does file work on threads of its own."""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from configs.errors import ConfigError
from configs.schema import Cache
from model.interface import HostPages, PageId
from scheduler.completions import Completion, Fetched, Found, Mailbox, Saved, StorageAnswer, Stored
from scheduler.copies import Chain
from scheduler.file_storage import FileStorage, Storage, page_names
from scheduler.host_tier import TOKEN_BYTES

CLOSE_S: Final = 5.0
Job = Callable[[], Completion | None]

logger = logging.getLogger(__name__)


class HostCopies:
    """``Copies`` over a runner's host pages and a storage in files. Called from the engine's thread.

    Jobs are bounded by the tiers: pages that are unready, being written or being fetched.

    Raises:
        ConfigError: the storage cannot be opened.
    """

    def __init__(self, host: HostPages, mailbox: Mailbox, cache: Cache, page_size: int) -> None:
        self._host = host
        self._page_bytes = page_size * TOKEN_BYTES
        self._mailbox = mailbox
        self._limit_bytes = cache.storage_bytes
        self._storage: Storage | None = None
        """Used by the thread of files alone once it runs."""
        if cache.storage_dir is not None:
            try:
                self._storage = self._open(cache.storage_dir)
            except OSError as error:
                message = f"cannot open the storage: {error.strerror}"
                raise ConfigError(message, key="cache.storage_dir", value=cache.storage_dir) from error
        self._copying = _Worker("host-copies", mailbox)
        self._filing = _Worker("storage", mailbox)

    def save(self, ticket: int, pages: Sequence[PageId], host_pages: Sequence[PageId]) -> None:
        """See ``Copies``."""
        handle = self._host.save(pages, host_pages)

        def wait() -> Completion:
            handle.result()
            return Saved(ticket)

        self._copying.do(wait)

    def load(self, host_pages: Sequence[PageId], pages: Sequence[PageId]) -> None:
        """See ``Copies``."""
        self._host.load(host_pages, pages)

    def store(self, ticket: int, chain: Chain, host_pages: Sequence[PageId]) -> None:
        """See ``Copies``."""

        def write() -> Completion:
            storage = self._storage
            if storage is not None:
                for name, page in zip(self._names(chain), host_pages, strict=False):
                    if not storage.put(name, partial(self._host.read, page)):
                        break
            return Stored(ticket)

        self._filing.do(write)

    def look_up(self, ticket: int, chain: Chain) -> None:
        """See ``Copies``."""

        def ask() -> Completion:
            found = 0
            if self._storage is not None:
                for name in self._names(chain):
                    if not self._storage.has(name):
                        break
                    found += 1
            return Found(ticket, found)

        self._filing.do(ask)

    def fetch(self, ticket: int, chain: Chain, host_pages: Sequence[PageId]) -> None:
        """See ``Copies``."""

        def read() -> Completion:
            count, storage = 0, self._storage
            for name, page in zip(self._names(chain), host_pages, strict=False):
                data = None if storage is None else storage.get(name)
                if data is None or not self._host.write(page, data):
                    break
                count += 1
            return Fetched(ticket, count)

        self._filing.do(read)

    def attach(self, ticket: int, directory: str) -> None:
        """See ``Copies``."""

        def attach() -> Completion:
            try:
                self._storage = self._open(directory)
            except OSError as error:
                return StorageAnswer(ticket, False, f"The storage cannot be opened: {error.strerror}.")
            return StorageAnswer(ticket, True, f"The storage holds {len(self._storage)} pages.")

        self._filing.do(attach)

    def detach(self) -> None:
        """See ``Copies``."""

        def detach() -> None:
            self._storage = None

        self._filing.do(detach)

    def clear(self, ticket: int) -> None:
        """See ``Copies``."""

        def clear() -> Completion:
            assert self._storage is not None, "the core clears what is attached"
            return StorageAnswer(ticket, True, f"Deleted {self._storage.clear()} pages.")

        self._filing.do(clear)

    def close(self) -> None:
        """See ``Copies``."""
        self._copying.close()
        self._filing.close()

    def _names(self, chain: Chain) -> Iterator[str]:
        return page_names(self._host.fingerprint, chain, self._page_bytes)

    def _open(self, directory: str) -> FileStorage:
        return FileStorage(Path(directory).expanduser(), self._limit_bytes)


class _Worker:
    """A thread that does jobs in order and posts what they come to.

    A job that fails is a bug or a broken device: the thread says so and ends, and the next job ends the engine.
    """

    def __init__(self, name: str, mailbox: Mailbox) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._mailbox = mailbox
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def do(self, job: Job) -> None:
        """Queue a job."""
        if self._failed is not None:
            raise RuntimeError(f"the thread {self._thread.name} has failed") from self._failed
        self._jobs.put(job)

    def close(self) -> None:
        """Do what is queued, and end."""
        self._jobs.put(None)
        self._thread.join(CLOSE_S)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                completion = job()
            except Exception as error:
                logger.exception("copies of pages fail")
                self._failed = error
                return
            if completion is not None:
                self._mailbox.post(completion)
