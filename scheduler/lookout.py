"""What an engine shows of itself when asked: the story of one request, and a frame of the live page."""

import heapq
import itertools
from typing import Final

from scheduler.channel import Origin
from scheduler.commands import Command, Explain, Frame, HotPrefix, Look, Reply
from scheduler.port import Answer
from scheduler.radix_cache import Node
from scheduler.roster import Roster
from scheduler.step_ring import StepRing
from scheduler.story import story_of

MAX_STORIES: Final = 256
"""Of one frame."""
MAX_PREFIXES: Final = 48
MAX_LOOKED_AT: Final = 4096
"""Nodes of the tree that are looked at for one frame."""


class Lookout:
    """Answers those who want to see: ``Explain`` and ``Look``.

    Args:
        roster: the requests.
        ring: the last steps.
        replica: number of the engine.
    """

    def __init__(self, roster: Roster, ring: StepRing, replica: int) -> None:
        self._roster = roster
        self._ring = ring
        self._replica = replica

    def answer(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        """Handle one of the two commands; changes nothing."""
        if isinstance(command, Explain):
            found = [story_of(request, now_ns) for request in self._roster.find(command.rid)]
            return [(origin, Reply(call=command.call, success=True, message="", stories=found))]
        assert isinstance(command, Look), "registered for nothing else"
        seen = frame(self._roster, self._ring, self._replica, now_ns, command)
        return [(origin, Reply(call=command.call, success=True, message="", frame=seen))]


def frame(roster: Roster, ring: StepRing, replica: int, now_ns: int, look: Look) -> Frame:
    """What happened since ``look.since_ns``. Its cost is bounded, however many requests and prefixes there are."""
    since_ns = look.since_ns
    requests = itertools.chain(
        (request for request in roster.running.values() if request.finish is None), roster.waiting.values()
    )
    shown = [story_of(request, now_ns, since_ns) for request in itertools.islice(requests, MAX_STORIES)]
    total = len(roster.running) + len(roster.waiting)
    ended = list(itertools.takewhile(lambda story: story.times.finished_ns >= since_ns, reversed(roster.ended)))
    return Frame(
        replica=replica,
        now_ns=now_ns,
        steps=ring.since(since_ns),
        stories=shown + ended[::-1],
        omitted=max(0, total - MAX_STORIES),
        pages=pages(roster),
        tree=hottest(roster.kv.root) if look.tree else None,
    )


def pages(roster: Roster) -> dict[str, int]:
    """Pages of the first group by state: free, cached and used by nobody, cached and in use, a request's own."""
    use = roster.kv.use()[0]
    return {
        "free": use.free,
        "cached": use.evictable,
        "shared": use.protected,
        "own": use.used - use.protected,
    }


def hottest(root: Node) -> list[HotPrefix]:
    """The prefixes that were used most, parents before children.

    A prefix is used at least as often as what continues it, so the most used ones are found from the root on.
    """
    found: list[HotPrefix] = []
    looked_at = 0
    queue: list[tuple[int, int, Node]] = []
    newest = max((child.tick for child in itertools.islice(root.children.values(), MAX_LOOKED_AT)), default=0)
    node = root
    while True:
        for child in itertools.islice(node.children.values(), MAX_LOOKED_AT - looked_at):
            looked_at += 1
            heapq.heappush(queue, (-child.uses, child.number, child))
        if not queue or len(found) == MAX_PREFIXES:
            return found
        _, _, node = heapq.heappop(queue)
        parent = 0 if node.parent is None else node.parent.number
        age = max(newest - node.tick, 0)
        found.append(HotPrefix(node.number, parent, len(node.pages), node.uses, age, node.refs > 0))
