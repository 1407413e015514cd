"""Finds stop strings in text that arrives in pieces, holding back any tail that may begin one.

The match is the one that is complete first; of several complete at the same character, the longest. That is a property
of the text alone, so cutting it into other pieces changes nothing.
"""

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Found:
    """What a piece of text brought."""

    text: str
    """Text that can be shown now."""
    matched: str | None = None
    """The stop string that ended it; nothing may be pushed after it."""


class StopFinder:
    """Knuth-Morris-Pratt over several strings at once: constant work a character and string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        assert all(stops), "an empty stop string would end every text"
        self._stops = stops
        self._borders = tuple(_borders(stop) for stop in stops)
        self._firsts = frozenset(stop[0] for stop in stops)
        self._lengths = [0] * len(stops)
        self._held = ""

    def push(self, piece: str) -> Found:
        """Take more text and give what is safe to show; a matched stop string is not part of it."""
        if not self._held and self._firsts.isdisjoint(piece):
            return Found(piece)
        text = self._held + piece
        for end in range(len(self._held), len(text)):
            length = self._step(text[end])
            if length:
                return Found(text[: end + 1 - length], text[end + 1 - length : end + 1])
        keep = max(self._lengths, default=0)
        self._held = text[len(text) - keep :]
        return Found(text[: len(text) - keep])

    def finish(self) -> str:
        """The text still held back when nothing follows."""
        held, self._held = self._held, ""
        return held

    def _step(self, char: str) -> int:
        """Advance every automaton; the length of the longest stop string that is now complete, or 0."""
        complete = 0
        for i, stop in enumerate(self._stops):
            length, borders = self._lengths[i], self._borders[i]
            while length and stop[length] != char:
                length = borders[length - 1]
            length += stop[length] == char
            self._lengths[i] = length
            if length == len(stop):
                complete = max(complete, length)
        return complete


def _borders(pattern: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = borders[length - 1]
        length += pattern[i] == pattern[length]
        borders[i] = length
    return borders
