"""Makes the processes of several hosts one JAX runtime: gloo between CPUs, NCCL between GPUs."""

import jax

from configs.errors import ConfigError
from configs.schema import Distributed

LEAST_HEARTBEAT_S = 100
LEAVE_S = 15
"""How long the first to leave waits for the others."""


def join(distributed: Distributed) -> None:
    """Meet the other hosts at the coordinator; must run before jax looks for devices. One host has nobody to meet.

    JAX aborts a process whose peers are silent. It is given three times our own patience, so that the launchers notice
    first and can say why.

    Raises:
      ConfigError: they did not all come in time.
    """
    if distributed.hosts == 1:
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            distributed.coordinator,
            distributed.hosts,
            distributed.rank,
            cluster_detection_method="deactivate",
            initialization_timeout=round(distributed.join_timeout_s),
            heartbeat_timeout_seconds=max(LEAST_HEARTBEAT_S, round(3 * distributed.timeout_s)),
            shutdown_timeout_seconds=LEAVE_S,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"the hosts did not meet: {str(error).partition(chr(10))[0]}",
            key="distributed.coordinator",
            value=distributed.coordinator,
            suggestion="see that host 0 runs, and that the others reach this address and port",
        ) from error


def leave() -> None:
    """Part from the other hosts, once all of them are ready to; nothing happens where there are none."""
    jax.distributed.shutdown()
