"""Gives the launcher every plan, which compares them with those of the other hosts."""

import contextlib
from typing import Final

import msgspec
import zmq

from scheduler.commands import PlanMade
from scheduler.observe import Event
from scheduler.planner import Plan
from scheduler.start import Endpoints

MAX_WAITING_PLANS: Final = 65_536


class PlanPost:
    """An ``Observer``. It hands over a plan before the plan is carried out: the step may be the one that hangs."""

    def __init__(self, context: "zmq.Context[zmq.SyncSocket]", endpoints: Endpoints) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._number = 0
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.SNDHWM, MAX_WAITING_PLANS)
        self._socket.connect(endpoints.plans)

    def observe(self, event: Event) -> None:
        """Take one event. A plan that the launcher does not take is missing in its comparison, no more."""
        if not isinstance(event, Plan):
            return
        self._number += 1
        with contextlib.suppress(zmq.Again):
            self._socket.send(self._encoder.encode(PlanMade(self._number, event.canonical())), zmq.NOBLOCK)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
