"""The device mesh, and what the hardware offers."""

from math import prod

import jax
import numpy as np
import psutil
from jax.sharding import AxisType, Mesh

from configs.errors import ConfigError
from configs.schema import HardwareFacts, Parallel
from sharding.axes import MESH_AXES, MODEL_AXES


def prepare_devices(parallel: Parallel) -> None:
    """Make a CPU show as many devices as the mesh needs; must run before any array exists."""
    if parallel.devices > 1:
        jax.config.update("jax_num_cpu_devices", parallel.devices)


def build_mesh(parallel: Parallel) -> Mesh:
    """A mesh with axes ``data, stage, expert, tensor`` over the first devices of this process.

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
    return Mesh(np.array(devices[:wanted]).reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def model_shards(mesh: Mesh) -> int:
    """Number of shards of what is not an expert: heads, vocabulary, dense feed-forward."""
    return prod(mesh.shape[axis] for axis in MODEL_AXES)


def hardware_facts() -> HardwareFacts:
    """Platform, kind and free memory of the first device."""
    device = jax.devices()[0]
    free = psutil.virtual_memory().available
    stats = device.memory_stats() if device.platform != "cpu" else None
    return HardwareFacts(
        platform={"cpu": "cpu", "tpu": "tpu"}.get(device.platform, "gpu"),  # type: ignore[arg-type]  # a Literal by value
        device_kind=device.device_kind,
        num_devices=len(jax.devices()),
        memory_bytes=stats["bytes_limit"] - stats["bytes_in_use"] if stats else free,
        host_memory_bytes=free,
    )
