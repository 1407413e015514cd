"""A run in a file: the Ticks, the plans they led to, and the tokens that were committed.

The file is a sequence of frames, each a 4-byte little-endian length and a MessagePack value. Token
ids are replaced by a keyed permutation of the vocabulary unless they are asked for in clear; the
key is drawn for the recording and kept nowhere, and equal ids stay equal, so prefixes still match.
"""

import hashlib
import logging
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import numpy as np
from msgspec import Struct, structs

from configs.errors import ConfigError
from configs.schema import Observe
from model.interface import Int32, Shapes
from scheduler.assembly import Settings
from scheduler.batch_builder import first_piece_row
from scheduler.commands import Command, Generate, StepStats, Stop
from scheduler.observe import Committed, Event
from scheduler.planner import Plan
from scheduler.tick import Tick

logger = logging.getLogger(__name__)

VERSION = 3
MAX_FRAME_BYTES = 2**30


class Header(Struct, frozen=True, tag="header"):
    """First frame: what an engine must be made of to decide the same."""

    version: int
    shapes: Shapes
    settings: Settings


class Turn(Struct, frozen=True, tag="turn"):
    """One turn's input."""

    tick: Tick


class Planned(Struct, frozen=True, tag="planned"):
    """``Plan.canonical`` of the turn."""

    plan: bytes


class Tokens(Struct, frozen=True, tag="tokens"):
    """Tokens of a step that was read, of the rows that sampled, in order."""

    tokens: list[int]


class Full(Struct, frozen=True, tag="full"):
    """Last frame of a recording that reached its limit."""


Frame = Header | Turn | Planned | Tokens | Full
_END: Final = msgspec.msgpack.encode(Full())


class Recorder:
    """Writes a recording; an ``Observer``. Stops at its limit, or when the disk is full, and ``recording`` says so.

    Args:
        file: opened for binary writing; the recorder owns it.
        limit_bytes: of the file.
        key: of the permutation; None records token ids in clear.
    """

    def __init__(self, file: BinaryIO, shapes: Shapes, settings: Settings, limit_bytes: int, key: bytes | None) -> None:
        self._file = file
        self._left = limit_bytes
        self._key = key
        self._ids = _permutation(shapes.vocab_size, key)
        self._shapes = shapes
        self._encoder = msgspec.msgpack.Encoder()
        self._recording = True
        eos_ids = tuple(self._hidden(settings.eos_ids))
        adapters = tuple(filter(None, map(self._hidden_text, settings.adapters)))
        self._write(Header(VERSION, shapes, structs.replace(settings, eos_ids=eos_ids, adapters=adapters)))

    @property
    def recording(self) -> bool:
        """Whether it goes on."""
        return self._recording

    def observe(self, event: Event) -> None:
        """Write one event."""
        if not self._recording:
            return
        if isinstance(event, Tick):
            commands = [(origin, self._hide(command)) for origin, command in event.commands]
            self._write(Turn(structs.replace(event, commands=commands)))
            self._flush()  # before the turn that may never end
        elif isinstance(event, Plan):
            self._write(Planned(event.canonical()))
        elif isinstance(event, Committed):
            self._write(Tokens(self._ids[_sampled(self._shapes, event)].tolist()))
        elif isinstance(event, StepStats) and not event.family:
            self._flush()  # the engine rests

    def close(self) -> None:
        """Finish the file."""
        self._recording = False
        try:
            self._file.close()
        except OSError as error:
            logger.error("the recording was not written to its end: %s", error)

    def _write(self, frame: Frame) -> None:
        data = self._encoder.encode(frame)
        if len(data) + len(_END) + 8 > self._left:
            data, self._recording = _END, False
        try:
            self._file.write(len(data).to_bytes(4, "little") + data)
            if not self._recording:
                self._file.flush()
        except OSError as error:
            self._fail(error)
        self._left -= len(data) + 4

    def _flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """The service goes on without the recording."""
        logger.error("the recording ends here: %s", error)
        self._recording = False

    def _hidden(self, tokens: list[int] | tuple[int, ...]) -> list[int]:
        size = len(self._ids)
        return [int(self._ids[token]) if 0 <= token < size else token for token in tokens]

    def _hide(self, command: Command) -> Command:
        if isinstance(command, Stop):
            return structs.replace(command, matched="")
        if not isinstance(command, Generate):
            return command
        params = command.params
        bias = zip(self._hidden([token for token, _ in params.logit_bias]), params.logit_bias, strict=True)
        hidden = structs.replace(
            params,
            stop_token_ids=tuple(self._hidden(params.stop_token_ids)),
            logit_bias=tuple((token, value) for token, (_, value) in bias),
        )
        return structs.replace(
            command,
            prompt=self._hidden(command.prompt),
            params=hidden,
            extra_key=self._hidden_text(command.extra_key),
            cache_salt=self._hidden_text(command.cache_salt),
            adapter=self._hidden_text(command.adapter),
            routing_key=self._hidden_text(command.routing_key),
        )

    def _hidden_text(self, text: str | None) -> str | None:
        if text is None or self._key is None:
            return text
        return hashlib.blake2b(text.encode(errors="surrogatepass"), key=self._key).hexdigest()


def open_recorder(observe: Observe, shapes: Shapes, settings: Settings) -> Recorder | None:
    """The recorder that a launch file asks for; None if it asks for none.

    Raises:
        ConfigError: the file cannot be written.
    """
    if observe.record is None:
        return None
    try:
        file = Path(observe.record).open("wb")  # noqa: SIM115  the recorder owns it
    except OSError as error:
        message = f"cannot write the recording: {error.strerror}"
        raise ConfigError(message, key="observe.record", value=observe.record) from error
    key = None if observe.record_token_ids == "clear" else secrets.token_bytes(32)
    return Recorder(file, shapes, settings, observe.record_limit_bytes, key)


def read_frames(path: Path) -> Iterator[Frame]:
    """The frames of a recording; a frame cut off at the end, by a crash, is left out.

    Raises:
        msgspec.DecodeError: the file is not a recording.
    """
    decoder = msgspec.msgpack.Decoder(Frame)
    with path.open("rb") as file:
        while len(head := file.read(4)) == 4:
            length = int.from_bytes(head, "little")
            if length > MAX_FRAME_BYTES:
                raise msgspec.DecodeError("a frame is longer than any recording's")
            data = file.read(length)
            if len(data) < length:
                return
            yield decoder.decode(data)


def _sampled(shapes: Shapes, event: Committed) -> Int32:
    plan, tokens = event.plan, event.output.tokens
    if not plan.pieces:
        return tokens[: len(plan.decode)]
    first = first_piece_row(shapes, plan)
    rows = [first + index for index, piece in enumerate(plan.pieces) if piece.samples]
    return np.concatenate((tokens[: len(plan.decode)], tokens[rows]))


def _permutation(vocab_size: int, key: bytes | None) -> Int32:
    """What each id is written as."""
    if key is None:
        return np.arange(vocab_size, dtype=np.int32)
    keyed = hashlib.blake2b(key=key, digest_size=8)
    digests: list[int] = []
    for token in range(vocab_size):
        state = keyed.copy()
        state.update(token.to_bytes(4, "little"))
        digests.append(int.from_bytes(state.digest(), "little"))
    order = np.argsort(np.array(digests, np.uint64), kind="stable")
    written = np.empty(vocab_size, np.int32)
    written[order] = np.arange(vocab_size, dtype=np.int32)
    return written
