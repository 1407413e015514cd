"""The least time that a step's work takes on a device, by its peaks (Williams et al., 2009: roofline). Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from configs.hardware import Device
from configs.schema import Parallel
from model.step_costs import StepCosts, Work


class Limit(NamedTuple):
    """Seconds that each part would take alone; a step is no faster than the slowest of them."""

    memory_s: float
    arithmetic_s: float
    link_s: float

    @property
    def seconds(self) -> float:
        """The least time of the step."""
        return max(self)

    @property
    def bound_by(self) -> str:
        """The part that takes longest."""
        return max(zip(self, ("memory", "arithmetic", "link"), strict=True))[1]


class Pace(NamedTuple):
    """How fast a step goes through all stages."""

    stage: Limit
    """Of the slowest stage, for its share of the rows."""
    seconds: float
    """Until every row has its token."""
    tokens_per_s: float
    """Of one replica."""


def limit(work: Work, moved_bytes: float, device: Device, parallel: Parallel) -> Limit:
    """The limits of one stage's step, whose ``moved_bytes`` go on to the next stage.

    A sum over n shards sends 2 (n - 1) / n of the array from each of them. Beyond an island it is the network that
    counts.
    """
    shards = parallel.shards
    sent = 2 * (shards - 1) / shards * work.summed_bytes
    between = _link(device, parallel.devices) if parallel.stages > 1 else device.link_bytes_per_s
    return Limit(
        work.num_bytes / device.bytes_per_s,
        work.flops / device.flops_per_s,
        sent / _link(device, shards) + moved_bytes / between,
    )


def decode_pace(
    costs: StepCosts, rows: int, context: int, token_bytes: int, device: Device, parallel: Parallel
) -> Pace:
    """Every one of ``rows`` requests gets a token; with stages, as many micro-batches are under way.

    ``token_bytes`` of a token go from stage to stage.
    """
    share = -(-rows // parallel.stages)
    moved = share * token_bytes if parallel.stages > 1 else 0
    stage = slowest(limit(stage.decode(share, context), moved, device, parallel) for stage in costs)
    # a row that runs alone goes from stage to stage, too
    seconds = stage.seconds * parallel.stages
    return Pace(stage, seconds, rows / seconds)


def prefill_pace(costs: StepCosts, tokens: int, token_bytes: int, device: Device, parallel: Parallel) -> Pace:
    """The first ``tokens`` of a prompt in one step; with stages, others follow it closely."""
    moved = tokens * token_bytes if parallel.stages > 1 else 0
    stage = slowest(limit(stage.prefill(tokens), moved, device, parallel) for stage in costs)
    return Pace(stage, stage.seconds * parallel.stages, tokens / stage.seconds)


def slowest(stages: Iterable[Limit]) -> Limit:
    """The stage that the others wait for."""
    return max(stages, key=lambda one: one.seconds)


def _link(device: Device, devices: int) -> float:
    return device.link_bytes_per_s if devices <= device.island else device.network_bytes_per_s
