"""All that enters one turn of the engine; its bytes are what a recording keeps and other hosts would get."""

from msgspec import Struct

from scheduler.channel import Origin
from scheduler.commands import Command
from scheduler.completions import Completion


class Tick(Struct, frozen=True, array_like=True):
    """One turn's input. Nothing else in the core reads a clock, a random source, a future or a wire.

    Seeds of unseeded requests are already drawn.
    """

    number: int
    now_ns: int
    commands: list[tuple[Origin, Command]]
    """In order of arrival."""
    completions: list[Completion] = []
    """What finished off the engine's thread, in order."""
