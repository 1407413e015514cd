"""``radjax_wait_seconds``: what requests spent their time on, as a family."""

from collections.abc import Iterator
from typing import Final

from scheduler.commands import Reason, Story
from serving.metrics_family import Family, Histograms, Labels

WAIT_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)


class WaitFigures:
    """A ``Source``: for each reason, how long requests that ended spent on it, those that did not at all left out."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._seconds = Histograms(("reason",), WAIT_S, [(reason.value,) for reason in Reason])

    def told(self, story: Story) -> None:
        """Count one ended request."""
        for reason, spent_ns in story.times.waited_ns.items():
            self._seconds.observe((reason,), spent_ns / 1e9)

    def families(self) -> Iterator[Family]:
        """See ``Source``."""
        text = "Time of ended requests by what it was spent on; of one request the reasons add up to its whole time."
        yield Family("wait_seconds", "histogram", text, self._seconds.samples(self._labels))
