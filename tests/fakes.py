"""Doubles that enter by constructor: a runner that remembers token ids, a clock, a scripted port."""

import itertools
from collections.abc import Iterable, Sequence
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
    last_token: dict[int, int] = field(default_factory=dict)
    counts: dict[int, tuple[dict[int, int], dict[int, int]]] = field(default_factory=dict)
    steps: list[StepInput] = field(default_factory=list)
    keep_steps: bool = False

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
        for row in np.flatnonzero(step.lengths):
            sequence = self._write_and_read(step, int(row))
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

    def _write_and_read(self, step: StepInput, row: int) -> list[int]:
        start, length, at = int(step.starts[row]), int(step.lengths[row]), int(step.offsets[row])
        pages, size = step.page_tables[0][row], self.shapes.page_size
        for index in range(length):
            token = int(step.tokens[at + index])
            if token == FROM_DEVICE:
                token = self.last_token[int(step.slots[row])]
            position = start + index
            page = int(pages[position // size])
            assert page, "a token's KV would go to the page of padding"
            self.memory[page, position % size] = token
        return [self.memory[int(pages[p // size]), p % size] for p in range(start + length)]

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
        assert [t.shape for t in step.page_tables] == [(num_rows, shapes.pages_per_row)]
        assert (step.full is not None) == (step.variant is Variant.FULL)
        assert (step.targets is not None) == (step.family is Family.SCORE)
        assert step.full is not None or not step.counts
        used = np.flatnonzero(step.lengths)
        padding = np.setdiff1d(np.arange(num_rows), used)
        assert not step.slots[padding].any()
        assert not step.sample[padding].any()
        assert not step.page_tables[0][padding].any()
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

    def poll(self) -> Tick:
        commands = self.script.pop(self.turn, [])
        self.turn += 1
        return Tick(next(self.numbers), self.clock(), commands)

    def wait(self) -> Tick:
        assert self.script, "the engine waits for a command that never comes"
        self.turn = max(self.turn, min(self.script))
        return self.poll()

    def send(self, answers: list[Answer]) -> None:
        self.answers.extend(answers)
