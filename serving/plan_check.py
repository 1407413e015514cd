"""Whether all hosts of an engine plan the same. Pure: plans and digests come in, the first difference comes out."""

import hashlib
from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from scheduler.commands import PLAN_FIELDS, PlanMade

MAX_KEPT: Final = 4096
"""Newest plans that can still be shown, and digests of another host that wait for plans of this one."""
DIGEST_BYTES: Final = 8


class Digest(NamedTuple):
    """A plan's number and hash."""

    number: int
    hash: bytes


class PlanLog:
    """The newest plans of this host."""

    def __init__(self) -> None:
        self.unsent: deque[Digest] = deque(maxlen=MAX_KEPT)
        """Not yet compared, on a host that follows."""
        self._plans: dict[int, bytes] = {}

    @property
    def newest(self) -> int:
        """Number of the newest; 0 before the first."""
        return next(reversed(self._plans), 0)

    def note(self, made: PlanMade) -> None:
        """Keep one more."""
        self._plans[made.number] = made.plan
        self.unsent.append(Digest(made.number, digest(made.plan)))
        if len(self._plans) > MAX_KEPT:
            del self._plans[next(iter(self._plans))]

    def take_unsent(self) -> list[Digest]:
        """All digests that were not sent yet."""
        taken = list(self.unsent)
        self.unsent.clear()
        return taken

    def find(self, number: int) -> bytes | None:
        """A plan, if it is kept."""
        return self._plans.get(number)


class Comparison:
    """Holds the plans of the other hosts, by their digests, against those of host 0."""

    def __init__(self, mine: PlanLog) -> None:
        self.compared = 0
        self._mine = mine
        self._ahead: dict[int, deque[Digest]] = {}
        """By host: digests of plans that host 0 has not made yet."""

    def heard(self, rank: int, digests: Iterable[Digest]) -> None:
        """Take what another host planned."""
        self._ahead.setdefault(rank, deque(maxlen=MAX_KEPT)).extend(digests)

    def difference(self) -> tuple[int, int] | None:
        """Rank and number of the first plan that differs; None as long as all that can be compared are equal."""
        for rank, waiting in self._ahead.items():
            while waiting and waiting[0].number <= self._mine.newest:
                theirs = waiting.popleft()
                ours = self._mine.find(theirs.number)
                if ours is None:
                    continue
                if digest(ours) != theirs.hash:
                    return rank, theirs.number
                self.compared += 1
        return None


def digest(plan: bytes) -> bytes:
    """A plan's hash."""
    return hashlib.blake2b(plan, digest_size=DIGEST_BYTES).digest()


def readable(plan: bytes | None) -> str:
    """A plan as a log shows it; requests are named by the order of their arrival."""
    if plan is None:
        return "kept no longer"
    values = msgspec.msgpack.decode(plan, type=list[msgspec.Raw])
    shown = (msgspec.json.encode(msgspec.msgpack.decode(value)).decode() for value in values)
    return " ".join(f"{name}={value}" for name, value in zip(PLAN_FIELDS, shown, strict=False) if value != "[]")
