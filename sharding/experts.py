"""Which expert stands at which place: places are dealt over the devices of the ``expert`` axis in equal runs. Pure."""

from collections.abc import Sequence


def imbalance(load: Sequence[int], devices: int) -> float:
    """Load of the busiest device as a multiple of the mean; ``load`` is by place. 1.0 is even, as is no load at all."""
    run = len(load) // devices
    by_device = [sum(load[at : at + run]) for at in range(0, len(load), run)]
    total = sum(by_device)
    return max(by_device) * devices / total if total else 1.0


def balanced(load: Sequence[int], devices: int) -> list[int]:
    """An order of the places that evens out the devices: the old place of what is to stand at each new one.

    The busiest first, each to the device with the least load that has room. The order stays as it is where that would
    not be better.
    """
    run = len(load) // devices
    taken: list[list[int]] = [[] for _ in range(devices)]
    loads = [0] * devices
    for place in sorted(range(len(load)), key=lambda place: -load[place]):
        device = min((d for d in range(devices) if len(taken[d]) < run), key=lambda d: (loads[d], d))
        taken[device].append(place)
        loads[device] += load[place]
    order = [place for places in taken for place in sorted(places)]
    better = imbalance([load[place] for place in order], devices) < imbalance(load, devices)
    return order if better else list(range(len(load)))
