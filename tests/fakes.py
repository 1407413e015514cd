"""Doubles that enter by constructor: a runner that remembers token ids, a clock, a scripted port."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from model.interface import (
    FROM_DEVICE,
    MAX_TOP_LOGPROBS,
    Family,
    Shapes,
    StepInput,
    StepOutput,
    Variant,
)
from scheduler.channel import Origin
from scheduler.commands import Command, Delta, Finished, Rejected, Reply
from scheduler.completions import Completion, Fetched, Found, Saved, StorageAnswer, Stored
from scheduler.copies import Chain
from scheduler.file_storage import page_names
from scheduler.port import Answer
from scheduler.tick import Tick

MASK = 0xFFFFFFFF


def echo_token(sequence: Iterable[int], vocab: int, banned: Sequence[int] = ()) -> int:
    """The token that "the model" says after a sequence: a hash of all of it, passing over what is banned."""
    value = 7
    for token in sequence:
        value = (value * 1_000_003 ^ (token + 17)) & MASK
    token = (value >> 7) % vocab
    while token in banned:
        token = (token + 1) % vocab
    return token


def echo_logprob(sequence: Sequence[int], target: int) -> float:
    """The log probability that "the model" gives a target after a sequence."""
    return -float(echo_token([*sequence, target], 997)) / 8


@dataclass
class EchoHandle:
    """A step's output, made when it was launched; may be read once."""

    output: StepOutput
    reads: int = 0

    def ready(self) -> bool:
        return True

    def result(self) -> StepOutput:
        self.reads += 1
        assert self.reads == 1, "a step was read twice"
        return self.output


@dataclass
class KVEchoRunner:
    """A runner whose KV memory is {(page, offset): token} and whose attention reads it all back through the page table.

    If a page is freed early, shared wrongly, or matched one token too far, the hash and so the output changes.
    """

    shapes: Shapes
    memory: dict[tuple[int, int], int] = field(default_factory=dict)
    window_memory: dict[tuple[int, int], int] = field(default_factory=dict)
    """Of the window group, from which the tokens that a sliding layer sees are read."""
    last_token: dict[int, int] = field(default_factory=dict)
    counts: dict[int, tuple[dict[int, int], dict[int, int]]] = field(default_factory=dict)
    steps: list[StepInput] = field(default_factory=list)
    keep_steps: bool = False
    host: None = None

    def compiled_late(self) -> int:
        return 0

    def launch(self, step: StepInput) -> EchoHandle:
        self._check(step)
        if self.keep_steps:
            self.steps.append(step)
        for row in step.counts:
            self.counts[row.slot] = (
                {int(t): int(n) for t, n in zip(row.ids, row.prompt, strict=True) if n},
                {int(t): int(n) for t, n in zip(row.ids, row.output, strict=True) if n},
            )
        num_rows = len(step.slots)
        logprob_rows = step.size if step.family is Family.SCORE else num_rows
        tokens = np.full(num_rows, 987_654, np.int32)
        logprobs = np.full(logprob_rows, np.nan, np.float32)
        top_ids = np.zeros((logprob_rows, MAX_TOP_LOGPROBS), np.int32)
        top = np.zeros((logprob_rows, MAX_TOP_LOGPROBS), np.float32)
        sampled: dict[int, int] = {}
        used = np.flatnonzero(step.lengths).tolist()
        for row in used:
            self._write(step, row)
        for row in used:
            sequence = self._read(step, row)
            slot = int(step.slots[row])
            if step.sample[row]:
                banned = step.full.banned_ids[row].tolist() if step.full else ()
                token = echo_token(sequence, self.shapes.vocab_size, banned)
                tokens[row] = sampled[slot] = token
                logprobs[row] = echo_logprob(sequence, token)
                if step.full:
                    top_ids[row] = (token + np.arange(MAX_TOP_LOGPROBS)) % self.shapes.vocab_size
                if slot in self.counts:
                    output = self.counts[slot][1]
                    output[token] = output.get(token, 0) + 1
            if step.targets is not None:
                start = int(step.starts[row])
                for index in range(int(step.lengths[row])):
                    target = int(step.targets[index])
                    logprobs[index] = echo_logprob(sequence[: start + index + 1], target)
        self.last_token.update(sampled)
        wanted = step.full is not None or step.targets is not None
        return EchoHandle(StepOutput(tokens, logprobs, top_ids, top) if wanted else StepOutput(tokens))

    def _write(self, step: StepInput, row: int) -> None:
        start, length, at = int(step.starts[row]), int(step.lengths[row]), int(step.offsets[row])
        for index in range(length):
            token = int(step.tokens[at + index])
            if token == FROM_DEVICE:
                token = self.last_token[int(step.slots[row])]
            for table, memory in zip(step.page_tables, (self.memory, self.window_memory), strict=False):
                place = self._place(table[row], start + index)
                assert place[0], "a token's KV would go to the page of padding"
                memory[place] = token

    def _read(self, step: StepInput, row: int) -> list[int]:
        """All tokens of the row; those that sliding layers see for the tokens of this step from the window group."""
        start, end = int(step.starts[row]), int(step.starts[row] + step.lengths[row])
        sequence = [self.memory[self._place(step.page_tables[0][row], p)] for p in range(end)]
        if self.shapes.window:
            oldest = max(0, start + 1 - self.shapes.window)
            window = [self._place(step.page_tables[1][row], p) for p in range(oldest, end)]
            sequence[oldest:] = [self.window_memory.get(place, -2) for place in window]
        return sequence

    def _place(self, pages: np.ndarray, position: int) -> tuple[int, int]:
        return int(pages[position // self.shapes.page_size]), position % self.shapes.page_size

    def _check(self, step: StepInput) -> None:
        """Everything that ``model.interface`` promises of a step."""
        shapes = self.shapes
        ladder = {Family.DECODE: shapes.decode_rows, Family.MIXED: shapes.mixed_tokens}.get(
            step.family, (shapes.score_tokens,)
        )
        assert step.size in ladder
        num_rows = shapes.rows(step.family, step.size)
        columns = [step.slots, step.starts, step.lengths, step.offsets]
        assert all(c.shape == (num_rows,) and c.dtype == np.int32 for c in columns)
        assert step.sample.shape == (num_rows,)
        assert step.sample.dtype == np.bool_
        assert step.tokens.shape == (step.size,)
        assert step.tokens.dtype == np.int32
        assert [t.shape for t in step.page_tables] == [(num_rows, shapes.pages_per_row)] * shapes.page_groups
        assert (step.full is not None) == (step.variant is Variant.FULL)
        assert (step.targets is not None) == (step.family is Family.SCORE)
        assert step.full is not None or not step.counts
        used = np.flatnonzero(step.lengths)
        padding = np.setdiff1d(np.arange(num_rows), used)
        assert not step.slots[padding].any()
        assert not step.sample[padding].any()
        assert not any(table[padding].any() for table in step.page_tables)
        assert step.slots[used].all()
        assert len(set(step.slots[used].tolist())) == len(used), "a slot has two rows"
        taken = np.zeros(step.size, bool)
        for row in used:
            begin, length = int(step.offsets[row]), int(step.lengths[row])
            assert begin + length <= step.size
            assert not taken[begin : begin + length].any(), "rows overlap"
            taken[begin : begin + length] = True
        assert step.num_tokens == taken.sum()
        assert not step.tokens[~taken].any(), "padding tokens must be 0"
        self._check_rows(step, used)

    def _check_rows(self, step: StepInput, used: np.ndarray) -> None:
        shapes, count = self.shapes, step.num_decode
        decode = used[used < count]
        assert decode.tolist() == list(range(count))
        assert (step.lengths[:count] == 1).all()
        assert step.offsets[:count].tolist() == list(range(count))
        assert step.sample[:count].all()
        pieces = used[used >= count].tolist()
        if step.family is Family.DECODE:
            assert not pieces
            return
        first = min(shapes.max_rows, step.size) if step.family is Family.MIXED else 0
        assert pieces == list(range(first, first + len(pieces)))
        assert pieces
        assert len(pieces) <= (shapes.max_pieces if step.family is Family.MIXED else 1)
        assert count <= first
        assert all(int(step.offsets[row]) % shapes.tile == 0 for row in pieces)


@dataclass
class EchoCopies:
    """Host memory and a storage beside a ``KVEchoRunner``; work ends some turns after it was asked for.

    A host page holds nothing from the moment its copy is ordered until that is said to be there, so that whatever
    loads it too early fails.
    """

    runner: KVEchoRunner
    delays: list[int] = field(default_factory=lambda: [1])
    """Turns that each further piece of work takes, over and over."""
    storage: dict[str, list[int]] | None = None
    shown: int = 1_000_000
    """Pages that one fetch reads at most, whatever was found."""
    host: dict[tuple[int, int], int] = field(default_factory=dict)
    under_way: "deque[tuple[int, Completion, Callable[[], None]]]" = field(default_factory=deque)
    asked: int = 0
    turn: int = 0
    closed: bool = False

    @property
    def size(self) -> int:
        return self.runner.shapes.page_size

    def due(self) -> "list[Completion]":
        """What is done this turn, in order."""
        self.turn += 1
        done: list[Completion] = []
        while self.under_way and self.under_way[0][0] <= self.turn:
            _, completion, act = self.under_way.popleft()
            act()
            done.append(completion)
        return done

    def save(self, ticket: int, pages: Sequence[int], host_pages: Sequence[int]) -> None:
        taken = {
            (to, at): self.runner.memory[page, at]
            for page, to in zip(pages, host_pages, strict=True)
            for at in range(self.size)
        }
        self._empty(host_pages)
        self._later(Saved(ticket), lambda: self.host.update(taken))

    def load(self, host_pages: Sequence[int], pages: Sequence[int]) -> None:
        for page, to in zip(host_pages, pages, strict=True):
            for at in range(self.size):
                self.runner.memory[to, at] = self.host[page, at]

    def store(self, ticket: int, chain: Chain, host_pages: Sequence[int]) -> None:
        assert self.storage is not None, "there is no storage"
        for name, page in zip(self._names(chain), host_pages, strict=True):
            self.storage[name] = [self.host[page, at] for at in range(self.size)]
        self._later(Stored(ticket))

    def look_up(self, ticket: int, chain: Chain) -> None:
        assert self.storage is not None, "there is no storage"
        self._later(Found(ticket, len(list(itertools.takewhile(self.storage.__contains__, self._names(chain))))))

    def fetch(self, ticket: int, chain: Chain, host_pages: Sequence[int]) -> None:
        assert self.storage is not None, "there is no storage"
        self._empty(host_pages)
        count = min(len(host_pages), self.shown)
        read: dict[tuple[int, int], int] = {}
        for name, page in zip(self._names(chain)[:count], host_pages, strict=False):
            read.update({(page, at): token for at, token in enumerate(self.storage[name])})
        self._later(Fetched(ticket, count), lambda: self.host.update(read))

    def attach(self, ticket: int, directory: str) -> None:
        known = directory == "known"

        def attach() -> None:
            self.storage = {} if known else self.storage

        self._later(StorageAnswer(ticket, known, "attached" if known else "not there"), attach)

    def detach(self) -> None:
        self.storage = None

    def clear(self, ticket: int) -> None:
        assert self.storage is not None, "there is no storage"
        self.storage.clear()  # at once, as all work on pages of the storage: it is done in the order of asking
        self._later(StorageAnswer(ticket, True, "cleared"))

    def close(self) -> None:
        self.closed = True

    def _names(self, chain: Chain) -> list[str]:
        return list(page_names(b"echo", chain, self.size * 4))

    def _empty(self, host_pages: Sequence[int]) -> None:
        for page in host_pages:
            for at in range(self.size):
                self.host.pop((page, at), None)

    def _later(self, completion: "Completion", act: "Callable[[], None]" = lambda: None) -> None:
        turns = self.delays[self.asked % len(self.delays)]
        self.asked += 1
        self.under_way.append((self.turn + turns, completion, act))


@dataclass
class FakeClock:
    """Nanoseconds that pass by one microsecond a reading."""

    now_ns: int = 1_000

    def __call__(self) -> int:
        self.now_ns += 1_000
        return self.now_ns


@dataclass
class ScriptedPort:
    """A port that hands out commands by turn: ``script[n]`` in turn n; asked for more when idle, it skips ahead."""

    script: dict[int, list[tuple[Origin, Command]]]
    answers: list[tuple[Origin, Delta | Finished | Rejected | Reply]] = field(default_factory=list)
    clock: FakeClock = field(default_factory=FakeClock)
    turn: int = 0
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    copies: "EchoCopies | None" = None

    def poll(self) -> Tick:
        commands = self.script.pop(self.turn, [])
        self.turn += 1
        done = self.copies.due() if self.copies else []
        return Tick(next(self.numbers), self.clock(), commands, done)

    def wait(self, limit_s: float | None = None) -> Tick:
        if limit_s is None and not (self.copies and self.copies.under_way):
            assert self.script, "the engine waits for a command that never comes"
            self.turn = max(self.turn, min(self.script))
        return self.poll()

    def send(self, answers: list[Answer]) -> None:
        self.answers.extend(answers)
