"""Converted weights: the model's leaves as one Orbax checkpoint inside a folder that is itself a source.

Orbax writes arrays with TensorStore and describes them in JSON; nothing of it is pickled.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import msgspec
from jax.sharding import NamedSharding
from msgspec import Struct, structs

from configs.errors import ConfigError
from model.loading.folder import COMPANIONS, ORBAX, ModelFolder, model_folder, read_json

CONVERSION_FILE = "conversion.json"


class Conversion(Struct, frozen=True):
    """``conversion.json``: what the order of the rows depends on, though no shape shows it."""

    tensor: int
    """Shards of the tensor axis."""
    expert: int = 1
    """Shards of the expert axis, over which heads are dealt too."""


def save(target: Path, source: ModelFolder, arrays: Mapping[str, jax.Array]) -> ModelFolder:
    """Write the leaves of a model and the companions of its source into the new folder ``target``.

    The folder appears when it is whole.

    Raises:
        ConfigError: ``target`` exists already, or cannot be written.
    """
    # Imported here: a third of a second that no other source needs.
    from orbax.checkpoint import StandardCheckpointer

    if target.exists():
        raise ConfigError(f"{target} exists already", suggestion="name a new folder")
    staging = target.with_name(f".{target.name}.partial").absolute()
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for name in COMPANIONS:
            if (source.path / name).is_file():
                shutil.copyfile(source.path / name, staging / name)
        conversion = _conversion(arrays)
        (staging / CONVERSION_FILE).write_bytes(msgspec.json.encode(conversion))
        with StandardCheckpointer() as checkpointer:
            checkpointer.save(staging / ORBAX, dict(arrays))
        staging.rename(target)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error})") from error
    return model_folder(target)


def restore(folder: ModelFolder, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Read the leaves straight onto their devices, in the dtype and sharding of ``targets``.

    Raises:
        ConfigError: they were converted for another mesh or another model, or are damaged.
    """
    # Imported here: as above.
    from orbax.checkpoint import StandardCheckpointer

    converted, wanted = read_json(folder.path / CONVERSION_FILE, Conversion), _conversion(targets)
    for axis in ("expert", "tensor"):
        there, here = structs.asdict(converted)[axis], structs.asdict(wanted)[axis]
        if there != here:
            raise ConfigError(
                f"{folder.path} was converted for parallel.{axis} {there}",
                key=f"parallel.{axis}",
                value=here,
                suggestion="convert the model again with this launch file",
            )
    try:
        with StandardCheckpointer() as checkpointer:
            return checkpointer.restore((folder.path / ORBAX).absolute(), dict(targets))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{folder.path} does not hold this model's weights: {reason}",
            key="model.source",
            suggestion="convert the model again",
        ) from error


def _conversion(leaves: Mapping[str, jax.Array] | Mapping[str, jax.ShapeDtypeStruct]) -> Conversion:
    """The mesh that the leaves are dealt over."""
    meshes = [leaf.sharding.mesh for leaf in leaves.values() if isinstance(leaf.sharding, NamedSharding)]
    tensor, expert = (max((mesh.shape.get(axis, 1) for mesh in meshes), default=1) for axis in ("tensor", "expert"))
    return Conversion(tensor, expert)
