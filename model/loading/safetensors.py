"""Tensors of one or several safetensors files, mapped into memory and never copied.

Follows the safetensors format: eight bytes of header length, a JSON header, then the tensors. The files are not
trusted: the header's length and every tensor's place are checked before use.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes
import msgspec
import numpy as np
from msgspec import Meta, Struct, field
from numpy.typing import NDArray

from configs.errors import ConfigError
from model.loading.folder import SAFETENSORS, SAFETENSORS_INDEX, read_json

_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_MAX_HEADER_BYTES = 100 * 2**20

Size = Annotated[int, Meta(ge=0, le=2**48)]


class _Entry(Struct, frozen=True):
    """One tensor of a header."""

    dtype: str
    shape: Annotated[tuple[Size, ...], Meta(max_length=8)]
    data_offsets: tuple[Size, Size]


class _Index(Struct, frozen=True):
    """``model.safetensors.index.json``."""

    weight_map: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class _Tensor:
    """A tensor's place: the mapped bytes of its file, and how to see them."""

    stored: NDArray[np.uint8]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class SafetensorsCheckpoint:
    """``model.safetensors``, or the files that ``model.safetensors.index.json`` names."""

    __slots__ = ("_folder", "_tensors")

    def __init__(self, folder: Path) -> None:
        """Read the headers.

        Raises:
            ConfigError: a file is missing, truncated or damaged.
        """
        self._folder = folder
        self._tensors: dict[str, _Tensor] = {}
        for file in _files(folder):
            self._tensors.update(_tensors(folder / file))

    def names(self) -> Sequence[str]:
        """Names as stored."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape as stored."""
        return self._tensor(name).shape

    def read(self, name: str) -> NDArray[Any]:
        """A read-only view of the mapped file, in the stored dtype."""
        tensor = self._tensor(name)
        return tensor.stored.view(tensor.dtype).reshape(tensor.shape)

    def _tensor(self, name: str) -> _Tensor:
        if name not in self._tensors:
            raise ConfigError(f"{self._folder} has no tensor {name}", key="model.source")
        return self._tensors[name]


def _files(folder: Path) -> list[str]:
    """Names of the weight files; each lies in the folder itself."""
    if (folder / SAFETENSORS).is_file():
        return [SAFETENSORS]
    index = folder / SAFETENSORS_INDEX
    names = sorted(set(read_json(index, _Index).weight_map.values()))
    if strange := [name for name in names if Path(name).name != name]:
        raise _bad(index, f"it names {strange[0]!r}, which is not a file of this folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        what = f"{folder / missing[0]} is missing ({len(missing)} of {len(names)} weight files are)"
        raise ConfigError(what, key="model.source", suggestion="copy or download the model again")
    return names


def _tensors(path: Path) -> dict[str, _Tensor]:
    """The tensors of one file."""
    try:
        with path.open("rb") as file:
            memory = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError) as error:
        raise _bad(path, f"it cannot be read ({error})") from error
    header_bytes = int.from_bytes(memory[:8].tobytes(), "little")
    if len(memory) < 8 or header_bytes > _MAX_HEADER_BYTES:
        raise _bad(path, f"its header of {header_bytes:,} bytes is no header of a safetensors file")
    if 8 + header_bytes > len(memory):
        raise _truncated(path)
    data = memory[8 + header_bytes :]
    try:
        header = msgspec.json.decode(memory[8 : 8 + header_bytes].tobytes(), type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in header.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(path, f"its header is not valid ({error})") from error
    return {name: _placed(path, name, entry, data) for name, entry in entries.items()}


def _placed(path: Path, name: str, entry: _Entry, data: NDArray[np.uint8]) -> _Tensor:
    if entry.dtype not in _DTYPES:
        raise _bad(path, f"tensor {name!r} is stored as {entry.dtype}; what can be read: {', '.join(_DTYPES)}")
    dtype = _DTYPES[entry.dtype]
    start, end = entry.data_offsets
    if end > len(data):
        raise _truncated(path)
    if end - start != prod(entry.shape) * dtype.itemsize:
        raise _bad(path, f"tensor {name!r} does not fill its {end - start:,} bytes")
    return _Tensor(data[start:end], dtype, entry.shape)


def _bad(path: Path, why: str) -> ConfigError:
    return ConfigError(f"{path} cannot be used: {why}", key="model.source")


def _truncated(path: Path) -> ConfigError:
    what = f"{path} is truncated: it ends after {path.stat().st_size:,} bytes, before its tensors do"
    return ConfigError(what, key="model.source", suggestion="copy or download the file again")
