"""The device mesh, and what the hardware offers."""

from math import prod

import jax
import numpy as np
import psutil
from jax.sharding import AxisType, Mesh

from configs.errors import ConfigError
from configs.schema import HardwareFacts, Parallel
from sharding.axes import MESH_AXES, MODEL_AXES


def prepare_devices(parallel: Parallel, hosts: int = 1) -> None:
    """Make a CPU show this host's share of the devices of the mesh; must run before any array exists."""
    if parallel.devices > 1:
        jax.config.update("jax_num_cpu_devices", parallel.devices // hosts)


def build_mesh(parallel: Parallel) -> Mesh:
    """A mesh with axes ``data, stage, expert, tensor`` over the first devices of every process, equally many of each.

    Raises:
      ConfigError: fewer devices than the sizes ask for.
    """
    sizes = (1, parallel.stages, parallel.expert, parallel.tensor)
    wanted, devices = parallel.devices, jax.devices()
    if wanted > len(devices):
        raise ConfigError(
            f"stages × expert × tensor = {parallel.stages} × {parallel.expert} × {parallel.tensor} needs {wanted} "
            f"devices, and there are {len(devices)}",
            key="parallel",
            suggestion=f"at most {len(devices)} in all",
        )
    each = wanted // jax.process_count()
    taken = [device for rank in range(jax.process_count()) for device in jax.local_devices(rank)[:each]]
    return Mesh(np.array(taken).reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def stage_meshes(mesh: Mesh) -> tuple[Mesh, ...]:
    """The devices of each pipeline stage, as meshes with the same axes and one stage."""
    stages = np.split(mesh.devices, mesh.shape["stage"], axis=MESH_AXES.index("stage"))
    return tuple(Mesh(devices, MESH_AXES, axis_types=mesh.axis_types) for devices in stages)


def model_shards(mesh: Mesh) -> int:
    """Number of shards of what is not an expert: heads, vocabulary, dense feed-forward."""
    return prod(mesh.shape[axis] for axis in MODEL_AXES)


def hardware_facts() -> HardwareFacts:
    """Platform, kind and free memory of this process's first device, and how many there are in all."""
    device = jax.local_devices()[0]
    free = psutil.virtual_memory().available
    stats = device.memory_stats() if device.platform != "cpu" else None
    return HardwareFacts(
        platform={"cpu": "cpu", "tpu": "tpu"}.get(device.platform, "gpu"),  # type: ignore[arg-type]  # a Literal by value
        device_kind=device.device_kind,
        num_devices=len(jax.devices()),
        memory_bytes=stats["bytes_limit"] - stats["bytes_in_use"] if stats else free,
        host_memory_bytes=free,
    )
