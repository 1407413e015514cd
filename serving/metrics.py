"""The figures of the service for Prometheus. Names are API: they keep the field's stems after ``radjax_``.

The parts keep what they are told; families are made when somebody reads. Other servers' names, where they are wanted,
are the same families once more.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from scheduler.commands import Compiled, Progress, Ready, RequestStats, StepStats, StepTimes
from serving.collector_wire import HttpStats, Told
from serving.metrics_alias import AliasName, aliased
from serving.metrics_engine import EngineFigures
from serving.metrics_family import Family, Sample, Source, exposed
from serving.metrics_requests import HttpFigures, RequestFigures
from serving.metrics_waits import WaitFigures

PROBE: Final = "/health_generate"

Report = StepStats | StepTimes | Compiled | RequestStats | HttpStats | Told | Ready | Progress
"""What is pushed to the collector."""


class Metrics:
    """All figures of the service.

    Args:
        labels: on every sample: ``model_name`` and ``engine_type`` (document: M-2).
        alias: whose names are given beside ours.
        replicas: how many engines there are; where there are several ``dp_rank`` tells them apart.
    """

    def __init__(self, labels: Mapping[str, str], alias: AliasName = "none", *, replicas: int = 1) -> None:
        self._labels = dict(labels)
        self._replicas = replicas
        self._engines = EngineFigures(labels, ranked=replicas > 1)
        self._requests = RequestFigures(labels)
        self._http = HttpFigures(labels)
        self._waits = WaitFigures(labels)
        self._serving: set[int] = set()
        self._sources: tuple[Source, ...] = (self._engines, self._requests, self._http, self._waits)
        self._registry = CollectorRegistry()
        self._registry.register(_Exposition(self._families, alias))

    def take(self, report: Report) -> None:
        """Take what an engine or a frontend reports. The service's own probes are no requests."""
        match report:
            case StepStats():
                self._engines.step(report)
            case StepTimes():
                self._engines.times(report)
            case Compiled():
                self._engines.compiled(report)
            case RequestStats():
                if report.endpoint != PROBE:
                    self._requests.request(report)
            case HttpStats():
                self._http.http(report)
            case Told():
                self._waits.told(report.story)
            case Ready():
                self._serving.add(report.replica)
                self._engines.ready(report)
            case Progress():
                pass

    def gone(self, replica: int) -> None:
        """An engine has died, and may be started again: no gauge of it remains, its counters stay."""
        self._serving.discard(replica)
        self._engines.gone(replica)

    def over(self) -> None:
        """The service ends: so do all gauges of engines."""
        self._serving.clear()
        self._engines.over()

    def render(self) -> bytes:
        """The text exposition format (``text/plain; version=0.0.4``)."""
        return generate_latest(self._registry)

    def _families(self) -> list[Family]:
        serving = [self._served(replica) for replica in range(self._replicas)]
        found = [Family("serving", "gauge", "1 while the engine serves.", serving)]
        for source in self._sources:
            found += source.families()
        return found

    def _served(self, replica: int) -> Sample:
        rank = {"dp_rank": str(replica)} if self._replicas > 1 else {}
        return Sample({**self._labels, **rank}, float(replica in self._serving))


class _Exposition(Collector):
    """What the registry asks at every scrape."""

    def __init__(self, families: Callable[[], list[Family]], alias: AliasName) -> None:
        self._families = families
        self._alias: AliasName = alias

    def collect(self) -> Iterator[Metric]:
        """See ``prometheus_client``."""
        families = self._families()
        for family in families:
            yield exposed(f"radjax_{family.stem}", family)
        for name, family in aliased(families, self._alias):
            yield exposed(name, family)
