"""The offline API: the same engine on a thread of this process, without sockets.

with LLM("configs/smollm2-135m.yaml") as llm:
    [output] = llm.generate(["Once upon a time"], SamplingOptions(max_tokens=20))
"""

import itertools
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from configs.env import process_environment
from configs.errors import ConfigError
from configs.load import load
from configs.schema import EngineConfig, Model
from scheduler.commands import (
    Abort,
    Batch,
    Delta,
    Finished,
    FinishReason,
    Generate,
    Message,
    Progress,
    Rejected,
    SamplingParams,
    Shutdown,
)
from scheduler.local_channel import LocalChannel
from scheduler.main import RunningEngine, open_engine
from serving.answer import Answer, Piece
from serving.text_side import TextSide, load_text_side
from serving.tokenizer import Segment

Prompt = str | Sequence[int]
_ORIGIN: Final = 0
_POLL_S: Final = 1.0
_CLOSE_S: Final = 30.0


class EngineStopped(Exception):
    """The engine's thread ended; its error is the cause."""


class PromptRejected(Exception):
    """The engine did not take a prompt; the text says why."""


@dataclass(slots=True, frozen=True, kw_only=True)
class SamplingOptions:
    """How to continue; what is not given is OpenAI's default."""

    max_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def params(self) -> SamplingParams:
        """As the engine wants it."""
        return SamplingParams(
            max_new_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            ignore_eos=self.ignore_eos,
        )


DEFAULT: Final = SamplingOptions()


@dataclass(slots=True)
class Output:
    """The continuation of one prompt, so far or whole."""

    index: int
    """Which prompt."""
    prompt_ids: list[int]
    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    """None while it goes on."""


@dataclass(slots=True, frozen=True)
class Piecewise:
    """New text of one prompt's continuation."""

    index: int
    text: str


class LLM:
    """A model in this process. One caller at a time; ``close`` it, or use it as a context manager."""

    def __init__(
        self,
        model: str | Path | EngineConfig,
        overrides: Sequence[str] = (),
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        """Load ``model``: a launch file (``.yaml``), a ``model.source``, or a configuration.

        ``overrides`` are ``section.key=value``, for a launch file. Returns when the model is ready.

        Raises:
          ConfigError: the launch file or the model does not work on this machine.
        """
        config, name = _configuration(model, overrides)
        if config.parallel.replicas > 1:
            raise ConfigError(
                "one process runs one engine",
                key="parallel.replicas",
                value=config.parallel.replicas,
                suggestion="leave it at 1, or start a service with radjax serve",
            )
        channel = LocalChannel()
        self._client = channel.client(_ORIGIN)
        self._running = open_engine(config, name, channel, on_progress)
        self._text = load_text_side(self._running.setup.ready(), config)
        self._numbers = itertools.count()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(self._running,), name="engine", daemon=True)
        self._thread.start()

    @property
    def text(self) -> TextSide:
        """Tokenizer, chat template and limits of the model."""
        return self._text

    def generate(self, prompts: Sequence[Prompt], options: SamplingOptions = DEFAULT) -> list[Output]:
        """Continue all prompts together; outputs are in the prompts' order.

        Raises:
          PromptRejected: one of them was refused; the others are aborted.
          EngineStopped: the engine failed.
        """
        outputs, pieces = self._submit(prompts, options)
        for _ in pieces:
            pass
        return outputs

    def stream(self, prompt: Prompt, options: SamplingOptions = DEFAULT) -> Generator[str, None, None]:
        """The pieces of one continuation as they come; closing the iterator ends the request.

        Raises:
          PromptRejected, EngineStopped: as ``generate``.
        """
        _, pieces = self._submit([prompt], options)
        for piece in pieces:
            if piece.text:
                yield piece.text

    def close(self) -> None:
        """End what runs and free the model. May be called twice."""
        if self._thread.is_alive():
            self._client.send(Shutdown())
            self._thread.join(_CLOSE_S)

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, running: RunningEngine) -> None:
        try:
            running.run()
        except BaseException as error:
            self._failure = error
            raise

    def _submit(self, prompts: Sequence[Prompt], options: SamplingOptions) -> tuple[list[Output], Iterator[Piecewise]]:
        outputs = [Output(index, self._encode(prompt)) for index, prompt in enumerate(prompts)]
        return outputs, self._pieces(outputs, options)

    def _pieces(self, outputs: list[Output], options: SamplingOptions) -> Iterator[Piecewise]:
        """Send every prompt, then fill ``outputs`` as answers come. Aborts what is open when it is closed early."""
        answers: dict[str, Answer] = {}
        try:
            for output in outputs:
                rid = f"offline-{next(self._numbers)}"
                detokenizer = self._text.tokenizer.detokenizer(skip_special_tokens=True)
                answers[rid] = Answer(
                    output.index, rid, len(output.prompt_ids), detokenizer, options.stop, keep_stop=False
                )
                self._client.send(Generate(rid=rid, prompt=output.prompt_ids, params=options.params()))
            while answers:
                for message in self._receive():
                    if isinstance(message, Batch):
                        for item in message.messages:
                            yield from self._take(answers, outputs, item)
        finally:
            for rid in answers:
                self._client.send(Abort(rid=rid))

    def _take(
        self, answers: dict[str, Answer], outputs: list[Output], item: Delta | Finished | Rejected
    ) -> Iterator[Piecewise]:
        answer = answers.get(item.rid)
        if answer is None:
            return  # of a request that a stop string or its caller has ended
        if isinstance(item, Rejected):
            del answers[item.rid]
            raise PromptRejected(f"prompt {answer.index}: {item.message}")
        finished = item if isinstance(item, Finished) else None
        delta = item.delta if isinstance(item, Finished) else item
        new = answer.push(Piece(tokens=list(delta.tokens), cached_tokens=delta.cached_tokens, finished=finished))
        output = outputs[answer.index]
        output.text += new.text
        output.token_ids += new.tokens
        output.cached_tokens = answer.cached_tokens
        if answer.stop is not None:
            self._client.send(answer.stop)
        if new.ending is not None:
            output.finish_reason = new.ending.reason
            del answers[item.rid]
        yield Piecewise(answer.index, new.text)

    def _receive(self) -> list[Message]:
        while True:
            messages = self._client.receive(_POLL_S)
            if messages:
                return messages
            if not self._thread.is_alive():
                raise EngineStopped("the engine has stopped") from self._failure

    def _encode(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        return self._text.tokenizer.encode_now([Segment(prompt, literal=False)], add_special_tokens=True)


def _configuration(model: str | Path | EngineConfig, overrides: Sequence[str]) -> tuple[EngineConfig, str]:
    if not isinstance(model, EngineConfig) and str(model).endswith((".yaml", ".yml")):
        loaded = load(Path(model), overrides, process_environment())
        return loaded.config, loaded.name
    if overrides:
        raise ConfigError("overrides are for launch files; change the configuration itself", value=list(overrides))
    if isinstance(model, EngineConfig):
        return model, model.model.name or "model"
    return EngineConfig(model=Model(source=str(model))), str(model).rpartition("/")[2]
