"""A replica's part of the machine, as a process of its own takes it."""

import os
import subprocess
import sys

from tests.serving.process.service import ROOT

TAKE = """
import os
from configs.schema import Parallel
from sharding.claim import claim
claim(Parallel(replicas={replicas}, tensor=2), {replica})
import jax
print(sorted(os.sched_getaffinity(0)), jax.devices()[0].platform, jax.config.values["jax_cuda_visible_devices"])
"""


def taken(replicas: int, replica: int) -> tuple[list[int], str]:
    """Cores and GPUs of one replica."""
    code = TAKE.format(replicas=replicas, replica=replica)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    cores, _, rest = done.stdout.strip().removeprefix("[").partition("] ")
    return [int(core) for core in cores.split(", ")], rest.split()[-1]


def test_replicas_take_cores_and_gpus_of_their_own_and_a_single_engine_takes_all() -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert taken(1, 0) == (cores, "all")
    (first, gpus), (second, others) = taken(2, 0), taken(2, 1)
    assert (gpus, others) == ("0,1", "2,3")
    if len(cores) > 1:
        assert not set(first) & set(second)
        assert len(first) == len(second) == len(cores) // 2
    assert set(first) | set(second) <= set(cores)
