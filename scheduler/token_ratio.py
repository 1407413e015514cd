"""The new-token ratio: which share of its remaining output a running request is assumed to need."""

from collections.abc import Collection

from scheduler.request import Request

INITIAL = 0.7
MINIMUM_SHARE = 0.14
DECAY_STEPS = 600
RETRACT_STEPS = 20
"""Steps for which room is left after a retraction."""


class TokenRatio:
    """SGLang's admission estimate: it falls while all goes well and jumps after a retraction."""

    def __init__(self, conservativeness: float) -> None:
        self._initial = min(INITIAL * conservativeness, 1.0)
        self._minimum = self._initial * MINIMUM_SHARE
        self.value = self._initial

    def decay(self) -> None:
        """A decode step went by without retraction."""
        self.value = max(self.value - (self._initial - self._minimum) / DECAY_STEPS, self._minimum)

    def retracted(self, survivors: Collection[Request]) -> None:
        """Requests were retracted; estimate anew from those that go on."""
        produced = sum(len(request.output) for request in survivors) + RETRACT_STEPS * len(survivors)
        self.value = min(1.0, produced / (sum(request.max_new for request in survivors) + 1))

    def reset(self) -> None:
        """Nothing runs any more."""
        self.value = self._initial
