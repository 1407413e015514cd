"""All engines of a service as one frontend knows them, and the choice among them."""

import time
from collections.abc import Iterator, Sequence
from typing import Final

from configs.schema import Parallel, Placement
from scheduler.commands import Generate, Ready
from serving.collector_wire import ReplicaLoad
from serving.engine_wire import Link
from serving.placement import Standing, place, shift
from serving.prefixes import page_hashes
from serving.replica import Replica

PAGE_SIZE: Final = 16
"""Of prefixes, where the engines do not say theirs."""


class Replicas:
    """One entry a replica, in order.

    Args:
        links: the ways to their first lives.
        parallel: how requests are placed.
    """

    def __init__(self, links: Sequence[Link], parallel: Parallel) -> None:
        self._all = [Replica(number, link) for number, link in enumerate(links)]
        self._placement: Placement = parallel.placement
        self._slack = parallel.placement_slack
        self._turn = 0

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._all)

    def __getitem__(self, number: int) -> Replica:
        return self._all[number]

    @property
    def serving(self) -> list[Replica]:
        """Those that can be asked."""
        return [replica for replica in self._all if replica.serving]

    @property
    def ready(self) -> Ready | None:
        """What the first said of itself, once all have."""
        said = [replica.ready for replica in self._all]
        return said[0] if all(said) else None

    def renew(self, number: int, link: Link, life: int) -> Replica:
        """A replica is started again; returns its new life."""
        replica = self._all[number] = Replica(number, link, life)
        return replica

    def heard(self, loads: Sequence[ReplicaLoad]) -> None:
        """The newest reports."""
        for load in loads:
            if 0 <= load.replica < len(self._all):
                self._all[load.replica].heard(load)

    def shift(self) -> tuple[Replica, float] | None:
        """The replica that is to give waiting requests away, and which share of its requests; None when none is."""
        standings = [replica.standing([]) for replica in self._all]
        found = shift(standings, self._slack)
        if found is None:
            return None
        number, count = found
        return self._all[number], count / standings[number].requests

    def choose(self, request: Generate, avoided: Replica | None = None) -> Replica | None:
        """The replica for a request, which counts as sent there, ``avoided`` last of all; None when none serves."""
        if len(self._all) == 1:
            [only] = self._all
            return only if only.gone is None else None
        hashes = page_hashes(request, self._page_size) if self._by_prefix else []
        standings = [Standing(False) if one is avoided else one.standing(hashes) for one in self._all]
        chosen = place(standings, self._placement, self._turn, self._slack)
        replica = avoided if chosen is None else self._all[chosen]
        if replica is None or not replica.serving:
            return None
        self._turn += 1
        replica.sent(request, hashes, time.monotonic_ns())
        return replica

    @property
    def _page_size(self) -> int:
        """Replicas are alike."""
        said = next((replica.ready.page_size for replica in self._all if replica.ready is not None), 0)
        return said or PAGE_SIZE

    @property
    def _by_prefix(self) -> bool:
        return self._placement in ("auto", "prefix")
