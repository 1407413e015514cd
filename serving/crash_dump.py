"""What was asked of engines that died (``observe.crash_dump_dir``): files of requests that can be asked again.

A file is JSON lines. The first says why it was written; each further one is a request with its ``body`` for
``/generate``, the ids that it was told, and how it ended: requests that the death cost, and those that ended in the
300 s before.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from msgspec import structs

from configs.errors import ConfigError
from configs.schema import Observe
from scheduler.commands import Delta, Finished, Generate, Rejected
from serving.listener import PROBES

KEEP_S: Final = 300
MAX_ENDED: Final = 2000
MAX_TOKENS: Final = 4 * 2**20
"""Of prompts and outputs of ended requests together."""
LOST: Final = "engine_dead"

_LOG: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class _Asked:
    request: Generate
    sent_s: float
    output: list[int] = field(default_factory=list[int])
    ended_s: float = 0.0
    how: str = LOST

    @property
    def num_tokens(self) -> int:
        return len(self.request.prompt) + len(self.output)


class CrashDump:
    """A listener of requests (see ``ListenedLink``) that writes a file when an engine dies.

    Args:
        folder: takes the files.
        name: of this process, in their names.
        clock: seconds since the epoch.
    """

    def __init__(self, folder: Path, name: str, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._name = name
        self._clock = clock
        self._open: dict[str, _Asked] = {}
        self._ended: deque[_Asked] = deque()
        self._num_tokens = 0
        self._num_files = 0

    def sent(self, request: Generate) -> None:
        """A request goes to the engine; again, where the one before gave it back."""
        if not request.rid.startswith(PROBES):
            self._open[request.rid] = _Asked(request, self._clock())

    def said(self, delta: Delta) -> None:
        """New tokens of a request."""
        asked = self._open.get(delta.rid)
        if asked is not None:
            asked.output += delta.tokens

    def finished(self, answer: Finished) -> None:
        """A request has ended."""
        self.said(answer.delta)
        self._end(answer.rid, answer.reason.value)

    def rejected(self, answer: Rejected) -> None:
        """A request was refused."""
        self._end(answer.rid, answer.code)

    def lost(self, rids: Collection[str], reason: str) -> None:
        """An engine died."""
        now_s = self._clock()
        self._forget(now_s)
        asked = [*self._ended, *(self._open.pop(rid) for rid in rids if rid in self._open)]
        self._ended.clear()
        self._num_tokens = 0
        if not asked:
            return
        head = {
            "radjax_crash_dump": 1,
            "reason": reason,
            "time_s": now_s,
            "process": self._name,
            "requests": len(asked),
        }
        lines = msgspec.json.Encoder().encode_lines([head, *map(_line, asked)])
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
        path = self._folder / f"crash_dump_{stamp}_{self._name}_{os.getpid()}_{self._num_files}.jsonl"
        self._num_files += 1
        try:
            # prompts are in it: nobody else reads it
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(lines)
        except OSError as error:
            _LOG.error("no crash dump was written: %s", error)
        else:
            _LOG.warning("%d requests of an engine that died are in %s", len(asked), path)

    def _end(self, rid: str, how: str) -> None:
        asked = self._open.pop(rid, None)
        if asked is None:
            return
        asked.ended_s, asked.how = self._clock(), how
        self._ended.append(asked)
        self._num_tokens += asked.num_tokens
        self._forget(asked.ended_s)

    def _forget(self, now_s: float) -> None:
        kept = self._ended
        while kept and (
            kept[0].ended_s < now_s - KEEP_S
            or len(kept) > MAX_ENDED
            or (self._num_tokens > MAX_TOKENS and len(kept) > 1)
        ):
            self._num_tokens -= kept.popleft().num_tokens


def crash_dump_folder(observe: Observe) -> Path | None:
    """The folder that a launch file names; it is there.

    Raises:
        ConfigError: it cannot be made, or not be written to.
    """
    if observe.crash_dump_dir is None:
        return None
    folder = Path(observe.crash_dump_dir)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        usable = False
    if not usable:
        raise ConfigError(
            "no folder that can be written to",
            key="observe.crash_dump_dir",
            value=observe.crash_dump_dir,
            suggestion="name one, or leave the key out",
        )
    return folder


def _line(asked: _Asked) -> dict[str, object]:
    return {
        "rid": asked.request.rid,
        "group": asked.request.group,
        "sent_s": asked.sent_s,
        "ended_s": asked.ended_s or None,
        "how": asked.how,
        "output_ids": asked.output,
        "body": _body(asked.request),
    }


def _body(request: Generate) -> dict[str, object]:
    """Of ``POST /generate``, for the same again but for stop strings, which engines do not know."""
    # in full: what is left out takes the service's defaults
    params = structs.asdict(request.params)
    logprobs, prompt_logprobs = params.pop("logprobs"), params.pop("prompt_logprobs")
    start = params.pop("prompt_logprobs_from")
    params["logit_bias"] = {str(token): value for token, value in request.params.logit_bias}
    found = {
        "return_logprob": None if logprobs is None else True,
        "top_logprobs_num": logprobs,
        "logprob_start_len": None if prompt_logprobs is None else start,
        "extra_key": request.extra_key,
        "cache_salt": request.cache_salt,
        "lora_path": request.adapter,
        "priority": request.priority,
        "routing_key": request.routing_key,
    }
    given = {name: value for name, value in found.items() if value is not None}
    return {"input_ids": request.prompt, "sampling_params": params, **given}
