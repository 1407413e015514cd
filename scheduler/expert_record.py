"""Which experts the tokens went to: a record that is started, stopped and dumped, and experts placed by it."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.interface import ExpertHost
from scheduler.channel import Origin
from scheduler.commands import Command, ExpertDistribution, Reply, StateScalar, StateValue
from scheduler.operations import Handler
from scheduler.port import Answer


class Refused(Exception):
    """It cannot be done now; its text is the answer."""


class ExpertRecord:
    """Handlers of the command (document: O-42).

    Args:
        experts: those of the runner.
        folder: where dumps are written; None is the folder for temporary files.
        name: makes a dump's name, without its suffix.
    """

    def __init__(self, experts: ExpertHost, folder: str | None, name: Callable[[], str]) -> None:
        self.handlers: Mapping[type[Command], Handler] = {ExpertDistribution: self._handle}
        self._experts = experts
        self._folder = Path(folder or tempfile.gettempdir())
        self._name = name
        self._begun: NDArray[np.uint32] | None = None
        """Counts at the start of a record that runs."""
        self._loads = np.zeros_like(experts.counts(), np.int64)
        """[layers, experts]: tokens of a record that was stopped."""

    def _handle(self, origin: Origin, command: Command, now_ns: int) -> list[Answer]:
        del now_ns
        assert isinstance(command, ExpertDistribution)
        actions = {"start": self._start, "stop": self._stop, "dump": self._dump, "rebalance": self._rebalance}
        try:
            state = actions[command.action]()
        except Refused as refused:
            return [(origin, Reply(call=command.call, success=False, message=str(refused)))]
        return [(origin, Reply(call=command.call, success=True, message="Succeeded", state=state))]

    def _start(self) -> dict[str, StateValue]:
        if self._begun is not None:
            raise Refused("A record is running already.")
        self._begun = self._experts.counts()
        return {}

    def _stop(self) -> dict[str, StateValue]:
        if self._begun is None:
            raise Refused("No record is running.")
        self._loads, self._begun = self._so_far(), None
        return {}

    def _so_far(self) -> NDArray[np.int64]:
        """Tokens of the record that runs, or of the last one; counts wrap around."""
        if self._begun is None:
            return self._loads
        return (self._experts.counts() - self._begun).astype(np.int64)

    def _dump(self) -> dict[str, StateValue]:
        loads = self._so_far()
        layers: dict[str, StateScalar | list[StateScalar]] = {
            str(layer): [*map(int, taken)] for layer, taken in zip(self._experts.layers, loads, strict=True)
        }
        record: dict[str, StateValue] = {"layers": layers, "imbalance": [*self._experts.imbalance(loads)]}
        path = self._folder / f"{self._name()}.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(msgspec.json.encode(record))
        except OSError as error:
            raise Refused(f"{path} cannot be written ({error.strerror}).") from error
        return {"file": str(path), **record}

    def _rebalance(self) -> dict[str, StateValue]:
        loads = self._so_far()
        if not loads.any():
            raise Refused("There is no record to go by: start one, and send some requests.")
        before = self._experts.imbalance(loads)
        self._experts.rebalance(loads)
        after = self._experts.imbalance(loads)
        # counts go by place, and the places have changed: the record begins anew
        self._loads = np.zeros_like(loads)
        self._begun = None if self._begun is None else self._experts.counts()
        return {"imbalance_before": [*before], "imbalance_after": [*after]}
