"""Converted weights: the model's leaves as one Orbax checkpoint inside a folder that is itself a source.

Orbax writes arrays with TensorStore and describes them in JSON; nothing of it is pickled.
"""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
from jax.sharding import NamedSharding
from msgspec import Struct
from numpy.typing import NDArray

from configs.errors import ConfigError
from model.loading.folder import COMPANIONS, ORBAX, ModelFolder, model_folder, read_json

CONVERSION_FILE = "conversion.json"
UNDER_WAY_GB = 1
"""Bytes that are read at once, in the unit that Orbax takes."""


class Conversion(Struct, frozen=True):
    """``conversion.json``: what the leaves depend on beside the model."""

    tensor: int
    """Shards of the tensor axis."""
    expert: int = 1
    """Shards of the expert axis, over which heads are dealt too."""
    dtype: str = ""
    """Of the matrices; empty in what was written before this was noted."""

    @classmethod
    def of(cls, leaves: Mapping[str, jax.Array] | Mapping[str, jax.ShapeDtypeStruct]) -> "Conversion":
        """What these leaves are, by their mesh and their largest."""
        meshes = [leaf.sharding.mesh for leaf in leaves.values() if isinstance(leaf.sharding, NamedSharding)]
        tensor, expert = (max((mesh.shape.get(axis, 1) for mesh in meshes), default=1) for axis in ("tensor", "expert"))
        return cls(tensor, expert, str(leaves["embedding"].dtype))


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
        (staging / CONVERSION_FILE).write_bytes(msgspec.json.encode(Conversion.of(arrays)))
        with StandardCheckpointer() as checkpointer:
            checkpointer.save(staging / ORBAX, dict(arrays))
        staging.rename(target)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error})") from error
    return model_folder(target)


def conversion_of(folder: ModelFolder) -> Conversion:
    """What a folder was converted for.

    Raises:
        ConfigError: it does not say.
    """
    return read_json(folder.path / CONVERSION_FILE, Conversion)


def restore(folder: ModelFolder, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Read the leaves straight onto their devices, in the dtype and sharding of ``targets``.

    They must have been converted for the mesh of ``targets``; about a gigabyte is under way at once.

    Raises:
        ConfigError: they are another model's, or are damaged.
    """
    # Imported here: as above.
    from orbax.checkpoint import StandardCheckpointer

    try:
        with StandardCheckpointer(restore_concurrent_gb=UNDER_WAY_GB) as checkpointer:
            return checkpointer.restore((folder.path / ORBAX).absolute(), dict(targets))
    except (OSError, ValueError, KeyError) as error:
        raise not_held(folder, error) from error


@contextmanager
def open_leaves(folder: ModelFolder) -> Iterator[Callable[[str], NDArray[Any]]]:
    """A function that reads one leaf as it was converted, into host memory; one at a time.

    It raises as this does:
        ConfigError: there is no such leaf, or it is damaged.
    """
    # Imported here: as above.
    from orbax.checkpoint import PyTreeCheckpointer, RestoreArgs
    from orbax.checkpoint.args import PyTreeRestore

    turn = threading.Lock()
    with PyTreeCheckpointer() as checkpointer:
        try:
            there = set(checkpointer.metadata((folder.path / ORBAX).absolute()).item_metadata.tree)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise not_held(folder, error) from error

        def read(name: str) -> NDArray[Any]:
            if name not in there:
                raise not_held(folder, ValueError(f"it has no leaf {name}"))
            wanted = PyTreeRestore(
                item={name: 0}, restore_args={name: RestoreArgs(restore_type=np.ndarray)}, partial_restore=True
            )
            try:
                with turn:
                    return checkpointer.restore((folder.path / ORBAX).absolute(), args=wanted)[name]
            except (OSError, ValueError, KeyError) as error:
                raise not_held(folder, error) from error

        yield read


def not_held(folder: ModelFolder, error: Exception) -> ConfigError:
    """The refusal of a folder whose leaves are not the model's."""
    reason = str(error).strip().partition("\n")[0]
    return ConfigError(
        f"{folder.path} does not hold this model's weights: {reason}",
        key="model.source",
        suggestion="convert the model again",
    )
