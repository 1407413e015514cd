"""Named host tensors, wherever they are stored."""

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from configs.errors import ConfigError
from model.loading.folder import ModelFolder
from model.loading.gguf import GgufCheckpoint
from model.loading.safetensors import SafetensorsCheckpoint


class Checkpoint(Protocol):
    """Tensors under their Hugging Face names and in that layout: matrices are [out, in]."""

    def names(self) -> Sequence[str]:
        """Every tensor there is."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        ...

    def read(self, name: str) -> NDArray[Any]:
        """One tensor as float32, or as bfloat16 or float16 where it is stored so.

        Safe from several threads at once. The array may be a read-only view of the file.

        Raises:
            ConfigError: there is no tensor of that name.
        """
        ...


def open_checkpoint(folder: ModelFolder) -> Checkpoint:
    """Open the safetensors or GGUF weights of a folder; tensors are read when asked for.

    Raises:
        ConfigError: the folder has no such weights, or they are damaged.
    """
    if folder.weights == "safetensors":
        return SafetensorsCheckpoint(folder.path)
    if folder.weights == "gguf":
        return GgufCheckpoint(folder.path)
    raise ConfigError(
        f"{folder.path} holds no safetensors and no GGUF weights",
        key="model.source",
        suggestion="name another source, or set model.load_format to dummy for random weights",
    )
