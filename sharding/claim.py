"""Confines an engine process to one replica's part of the machine."""

import os
import sys

import jax

from configs.replicas import cores_of
from configs.schema import Parallel


def claim(parallel: Parallel, replica: int) -> None:
    """Take this replica's processor cores and GPUs, and see no others; with one replica all are its own.

    Must run before threads are started that compute, and before jax looks for devices. XLA makes as many threads as
    there are cores, so replicas that all had them all would wait for each other's.
    """
    if parallel.replicas == 1:
        return
    visible = ",".join(map(str, range(replica * parallel.devices, (replica + 1) * parallel.devices)))
    jax.config.update("jax_cuda_visible_devices", visible)
    jax.config.update("jax_rocm_visible_devices", visible)
    if sys.platform == "linux":
        os.sched_setaffinity(0, cores_of([*os.sched_getaffinity(0)], parallel.replicas, replica))
