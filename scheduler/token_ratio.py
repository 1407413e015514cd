"""The new-token ratio: which share of its remaining output a running request is assumed to need."""

from collections.abc import Collection

from msgspec import Struct

from scheduler.request import Request


class RatioSettings(Struct, frozen=True, kw_only=True):
    """SGLang's parameters and defaults."""

    start: float = 0.7
    floor: float = 0.14
    """Share of the start below which the ratio does not fall."""
    decay_steps: int = 600
    """Steps from the start to the floor."""
    retract_steps: int = 20
    """Steps for which room is left after a retraction."""


class TokenRatio:
    """SGLang's admission estimate: it falls while all goes well and jumps after a retraction."""

    def __init__(self, conservativeness: float, settings: RatioSettings) -> None:
        self._initial = min(settings.start * conservativeness, 1.0)
        self._minimum = self._initial * settings.floor
        self._decay = (self._initial - self._minimum) / settings.decay_steps
        self._retract_steps = settings.retract_steps
        self.value = self._initial

    def decay(self) -> None:
        """A decode step went by without retraction."""
        self.value = max(self.value - self._decay, self._minimum)

    def retracted(self, survivors: Collection[Request]) -> None:
        """Requests were retracted; estimate anew from those that go on."""
        produced = sum(len(request.output) for request in survivors) + self._retract_steps * len(survivors)
        self.value = min(1.0, produced / (sum(request.max_new for request in survivors) + 1))

    def reset(self) -> None:
        """Nothing runs any more."""
        self.value = self._initial
