"""A model of 300-odd byte-level tokens, an engine that plays a script, and a collector that says what it is told."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from configs.schema import EngineConfig, Model, Serving
from scheduler.commands import (
    Abort,
    AbortAll,
    Batch,
    Command,
    Delta,
    Explain,
    Finished,
    FinishReason,
    FlushCache,
    Generate,
    GetState,
    Look,
    Message,
    Ready,
    Rejected,
    Reply,
    RequestStats,
    RequestTimes,
    Stop,
    Story,
    TokenLogprobs,
)
from serving.engine_wire import EngineGone
from serving.protocol.collector import Health, Load

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EOS = "<|im_end|>"
CONTEXT = 512
CORPUS = [
    "The capital of France is Paris. The quick brown fox jumps over the lazy dog.",
    "Größe, café, naïve: 日本語 and 🙂 are characters of several bytes.",
]


def make_folder(folder: Path) -> Path:
    """A model folder without weights."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>", "<|im_start|>", EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}'
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text('{"temperature": 0.25, "top_k": 7, "max_length": 9}')
    return folder


def make_ready(folder: Path) -> Ready:
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    return Ready(
        status="ready",
        max_total_num_tokens=4096,
        max_req_input_len=CONTEXT - 1,
        context_length=CONTEXT,
        vocab_size=size,
        eos_token_ids=[2],
        folder=str(folder),
        served_name="tiny",
        max_running_requests=8,
        architecture="LlamaForCausalLM",
        banner=[],
    )


def make_config(**serving: object) -> EngineConfig:
    return EngineConfig(
        model=Model(source="tiny-folder", aliases=("tiny-alias",)),
        serving=msgspec.convert(serving, Serving),
    )


Script = Callable[[Generate], Sequence[int] | Rejected]


@dataclass
class FakeEngine:
    """A link whose engine plays ``script``'s tokens, one a delta, pausing ``pace_s`` between them.

    Log probabilities: token t has -(t % 7) - 0.5; the best ones are itself and id 3. Prompts are half cached.
    """

    script: Script
    pace_s: float = 0.0
    heard: list[Command] = field(default_factory=list)
    idle: bool = True
    deaf: bool = False
    """Whether questions get no answer."""
    _out: asyncio.Queue[Message | Exception] = field(default_factory=asyncio.Queue)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _groups: dict[str, Generate] = field(default_factory=dict)

    async def send(self, command: Command) -> None:
        self.heard.append(command)
        match command:
            case Generate():
                self._groups[command.rid] = command
                self._tasks[command.rid] = asyncio.create_task(self._play(command))
            case Abort(rid=rid):
                for request in list(self._groups.values()):
                    if rid in (request.rid, request.group):
                        self._end(request, FinishReason.ABORT, [], None)
            case AbortAll():
                for request in list(self._groups.values()):
                    self._end(request, FinishReason.ABORT, [], None)
            case Stop(rid=rid, matched=matched):
                if rid in self._groups:
                    self._end(self._groups[rid], FinishReason.STOP, [], matched, command.num_tokens)
            case FlushCache(call=call):
                self._out.put_nowait(Reply(call=call, success=self.idle, message="Cache flushed."))
            case GetState(call=call) if not self.deaf:
                self._out.put_nowait(Reply(call=call, success=True, message="", state={"running": 0}))
            case Explain(call=call) | Look(call=call):
                self._out.put_nowait(Reply(call=call, success=True, message=""))
            case _:
                pass

    async def receive(self) -> Message:
        message = await self._out.get()
        if isinstance(message, Exception):
            raise message
        return message

    def say(self, message: Message) -> None:
        self._out.put_nowait(message)

    def die(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._out.put_nowait(EngineGone("killed by signal 9"))

    def count(self, kind: type) -> int:
        return sum(isinstance(command, kind) for command in self.heard)

    async def _play(self, request: Generate) -> None:
        tokens = self.script(request)
        if isinstance(tokens, Rejected):
            self._groups.pop(request.rid)
            self.say(Batch(messages=[msgspec.structs.replace(tokens, rid=request.rid)]))
            return
        limit = request.params.max_new_tokens
        tokens = list(tokens)[:limit]
        held: list[int] = []
        for i, token in enumerate(tokens):
            await asyncio.sleep(self.pace_s)
            if i == len(tokens) - 1:
                stopped = token == 2 and not request.params.ignore_eos
                reason = FinishReason.STOP if stopped else FinishReason.LENGTH
                self._end(request, reason, [*held, token], 2 if stopped else None, len(tokens))
            elif request.stream:
                self.say(Batch(messages=[self._delta(request, [token], first=i == 0)]))
            else:
                held.append(token)
        if not tokens:
            self._end(request, FinishReason.LENGTH, [], None)

    def _delta(self, request: Generate, tokens: list[int], *, first: bool) -> Delta:
        params = request.params
        prompt = None
        if first and params.prompt_logprobs is not None:
            start = params.prompt_logprobs_from
            prompt = [score(token, at=start + i) for i, token in enumerate(request.prompt[start:])]
        return Delta(
            rid=request.rid,
            tokens=tokens,
            logprobs=[score(token) for token in tokens] if params.logprobs is not None else None,
            prompt_logprobs=prompt,
            cached_tokens=len(request.prompt) // 2 if first else 0,
        )

    def _end(
        self,
        request: Generate,
        reason: FinishReason,
        tokens: list[int],
        matched: int | str | None,
        num_tokens: int = 0,
    ) -> None:
        if self._groups.pop(request.rid, None) is None:
            return
        task = self._tasks.pop(request.rid)
        if task is not asyncio.current_task():
            task.cancel()
        first = len(tokens) == num_tokens
        finished = Finished(
            rid=request.rid,
            delta=self._delta(request, tokens, first=first),
            reason=reason,
            matched=matched,
            prompt_tokens=len(request.prompt),
            output_tokens=num_tokens,
            cached_tokens=len(request.prompt) // 2,
            times=RequestTimes(arrived_ns=1, admitted_ns=2, first_token_ns=3, finished_ns=4, waited_ns={}),
        )
        self.say(Batch(messages=[finished]))


def score(token: int, at: int = 1) -> TokenLogprobs:
    if at == 0:
        return TokenLogprobs(token, None, [], [])
    own = -(token % 7) - 0.5
    return TokenLogprobs(token, own, [token, 3], [own, own - 1.0])


@dataclass
class FakeCollector:
    """Says what it is told."""

    state: Health = field(default_factory=lambda: Health(state="ready"))
    stories: list[Story] = field(default_factory=list)
    frozen: int = 0

    async def metrics(self) -> bytes:
        return b"radjax_num_running_reqs 0.0\n"

    async def loads(self) -> list[Load]:
        return [
            Load(
                dp_rank=0,
                num_reqs=3,
                num_running_reqs=2,
                num_waiting_reqs=1,
                num_tokens=640,
                num_pending_tokens=17,
                ts_tic=1.5,
            )
        ]

    async def freeze_gc(self) -> None:
        self.frozen += 1

    async def explain(self, rid: str) -> list[Story]:
        return [story for story in self.stories if rid in (story.rid, story.group)]

    async def health(self) -> Health:
        return self.state


@dataclass
class Sink:
    """Keeps what each request cost."""

    seen: list[RequestStats] = field(default_factory=list)

    def __call__(self, stats: RequestStats) -> None:
        self.seen.append(stats)
