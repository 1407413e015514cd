"""Requests for a simulation: read from a file of JSON lines, or drawn from a few numbers.

A line is one request::

    {"arrival_s": 0.5, "prompt_len": 128, "prefix": "a", "prefix_len": 512, "max_tokens": 64}

Requests of the same ``prefix`` begin with the same tokens; ``prompt`` with token ids may stand in place of the lengths.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta, Struct, structs

from scheduler.commands import Command, Generate, SamplingParams, Token

MAX_LINE_BYTES: Final = 16 * 2**20
MAX_REQUESTS: Final = 1_000_000
MAX_PREFIXES: Final = 65_536
MAX_PROMPT: Final = 2**20
MAX_SECONDS: Final = 10**8

Length = Annotated[int, Meta(ge=0, le=MAX_PROMPT)]
Drawn = Annotated[int, Meta(ge=1, le=MAX_PROMPT)]
Limit = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class TraceError(Exception):
    """A trace cannot be used; the message names file and line."""


class Arrival(NamedTuple):
    """A command that enters at a time."""

    at_ns: int
    command: Command
    output_tokens: int | None = None
    """Of a request: how many it says before it ends by itself; None: as many as it may."""


class TraceLine(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One request of a trace."""

    arrival_s: Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
    """Not before the line above."""
    prompt: Annotated[list[Token], Meta(min_length=1, max_length=MAX_PROMPT)] | None = None
    prompt_len: Length = 0
    """Tokens of its own, after the shared ones."""
    prefix: Annotated[str, Meta(max_length=256)] | None = None
    prefix_len: Length = 0
    max_tokens: Limit
    output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    """How many it says, where it ends before ``max_tokens``."""
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    extra_key: Annotated[str, Meta(max_length=1024)] | None = None
    """Cache namespace."""
    routing_key: Annotated[str, Meta(max_length=256)] | None = None


class Synthetic(Struct, frozen=True, kw_only=True):
    """A workload in a few numbers; lengths are drawn evenly from (least, most)."""

    requests: Annotated[int, Meta(ge=1, le=MAX_REQUESTS)] = 1000
    rate: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    """Requests a second, at random times; None: a new one whenever one is answered."""
    concurrency: Annotated[int, Meta(ge=1, le=MAX_REQUESTS)] = 32
    """Requests at a time, without a rate."""
    prompt_len: tuple[Drawn, Drawn] = (128, 128)
    output_len: tuple[Drawn, Drawn] = (64, 64)
    prefixes: Annotated[int, Meta(ge=0, le=MAX_PREFIXES)] = 0
    prefix_len: Length = 0
    """Shared tokens in front; prefixes take turns."""
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0

    def arrivals(self, vocab_size: int) -> Iterator[Arrival]:
        """The requests, the same for the same seed; without a rate all arrive at 0."""
        chance = random.Random(self.seed)
        at_s = 0.0
        for number in range(self.requests):
            if self.rate is not None:
                at_s += chance.expovariate(self.rate)
            shared = number % self.prefixes if self.prefixes else None
            line = TraceLine(
                arrival_s=at_s,
                prompt_len=chance.randint(*self.prompt_len),
                prefix=None if shared is None else str(shared),
                prefix_len=self.prefix_len if shared is not None else 0,
                max_tokens=chance.randint(*self.output_len),
            )
            yield arrival(line, number, self.seed, vocab_size)


def arrival(line: TraceLine, number: int, seed: int, vocab_size: int) -> Arrival:
    """The request of a line; tokens that it does not give are drawn from ``seed`` and its place."""
    prompt = line.prompt
    if prompt is None:
        prompt = _ids(line.prompt_len, f"{seed}/{number}", vocab_size)
        if line.prefix_len:
            prompt = _ids(line.prefix_len, f"{seed}/prefix/{line.prefix}", vocab_size) + prompt
    command = Generate(
        rid=str(number),
        prompt=prompt,
        params=SamplingParams(max_new_tokens=line.max_tokens, temperature=0.0, seed=0),
        stream=False,
        extra_key=line.extra_key,
        priority=line.priority,
        routing_key=line.routing_key,
    )
    return Arrival(round(line.arrival_s * 1e9), command, line.output_tokens)


def read_trace(path: Path, vocab_size: int) -> Iterator[Arrival]:
    """The requests of a file of JSON lines, read one by one.

    Raises:
        TraceError: a line is no request, or arrives before the one above it.
    """
    decoder = msgspec.json.Decoder(TraceLine)
    count, latest = 0, 0.0
    with path.open("rb") as file:
        for number, text in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if not text.strip():
                continue
            where = f"{path}:{number}"
            try:
                line = decoder.decode(text) if len(text) <= MAX_LINE_BYTES else None
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise TraceError(f"{where}: {error}") from error
            if line is None:
                raise TraceError(f"{where}: a line may have {MAX_LINE_BYTES} bytes")
            _refuse(line, latest, where)
            count, latest = count + 1, line.arrival_s
            if count > MAX_REQUESTS:
                raise TraceError(f"{where}: a trace may have {MAX_REQUESTS} requests")
            yield arrival(line, count - 1, 0, vocab_size)
    if not count:
        raise TraceError(f"{path}: holds no request")


def ending(command: Generate, stop_token: int, stops: bool) -> Generate:
    """The request as a simulation asks it: it ends by length, or at the token that the runner says to end it."""
    ids = (stop_token,) if stops else ()
    return structs.replace(
        command, stream=False, params=structs.replace(command.params, ignore_eos=True, stop_token_ids=ids)
    )


def _refuse(line: TraceLine, latest: float, where: str) -> None:
    if line.arrival_s < latest:
        raise TraceError(f"{where}: arrives at {line.arrival_s} s, before the line above ({latest} s); sort the trace")
    if line.prompt is None and not line.prompt_len + line.prefix_len:
        raise TraceError(f"{where}: give prompt, or prompt_len")
    if line.prompt is not None and (line.prompt_len or line.prefix_len or line.prefix is not None):
        raise TraceError(f"{where}: give prompt, or prompt_len with prefix and prefix_len, not both")
    if line.prefix_len and line.prefix is None:
        raise TraceError(f"{where}: prefix_len wants prefix, the name of those who share it")


def _ids(count: int, key: str, vocab_size: int) -> list[int]:
    """Token ids that depend on the key alone."""
    source = random.Random(key)
    return np.frombuffer(source.randbytes(4 * count), np.uint32).__mod__(np.uint32(vocab_size)).tolist()
