"""Small engines and requests for examples."""

from dataclasses import dataclass, field

from model.interface import Shapes
from scheduler.assembly import Settings, assemble
from scheduler.commands import Command, Delta, Finished, Generate, Rejected, Reply, SamplingParams, Shutdown
from scheduler.loop import run
from scheduler.observe import Event
from tests.fakes import KVEchoRunner, ScriptedPort

SHAPES = Shapes(
    decode_rows=(1, 2, 4),
    mixed_tokens=(8, 32),
    score_tokens=8,
    max_rows=4,
    max_pieces=2,
    tile=4,
    page_size=2,
    pages_per_row=32,
    vocab_size=50,
)
SETTINGS = Settings(
    context_length=64, num_pages=64, max_rows=4, depth=1, max_inflight=1, eos_ids=(49,), check="every_step"
)


def ask(rid: str, prompt: list[int], max_new_tokens: int, *, stream: bool = True, **params: object) -> Generate:
    """A request that ends by length unless told otherwise."""
    settled = {"ignore_eos": True, "seed": 1, "max_new_tokens": max_new_tokens} | params
    return Generate(rid=rid, prompt=prompt, params=SamplingParams(**settled), stream=stream)  # pyright: ignore[reportArgumentType]


@dataclass
class Watcher:
    """An observer that keeps every event."""

    events: list[Event] = field(default_factory=list)

    def observe(self, event: Event) -> None:
        self.events.append(event)


@dataclass
class Played:
    """What a script led to."""

    port: ScriptedPort
    runner: KVEchoRunner
    events: list[Event]

    def of(self, rid: str) -> list[Delta | Finished | Rejected]:
        """Answers for one request."""
        answers = [a for _, a in self.port.answers if not isinstance(a, Reply)]
        return [answer for answer in answers if answer.rid == rid]

    def end(self, rid: str) -> Finished:
        """Its terminal answer, which must be Finished."""
        last = self.of(rid)[-1]
        assert isinstance(last, Finished), last
        return last

    def replies(self) -> list[Reply]:
        """Answers to control commands."""
        return [answer for _, answer in self.port.answers if isinstance(answer, Reply)]


def play(script: dict[int, list[Command]], settings: Settings = SETTINGS, shapes: Shapes = SHAPES) -> Played:
    """Run commands by turn until all is done."""
    turns: dict[int, list[tuple[int, Command]]] = {
        turn: [(0, command) for command in commands] for turn, commands in script.items()
    }
    turns[10_000] = [(0, Shutdown())]
    port, runner, watcher = ScriptedPort(turns), KVEchoRunner(shapes, keep_steps=True), Watcher()
    run(assemble(port, runner, settings, (watcher,)), settings.depth)
    return Played(port, runner, watcher.events)
