"""The header of a GGUF file: its metadata, and where each tensor lies.

Follows the GGUF specification (ggml, ``docs/gguf.md``), versions 2 and 3, little-endian. The file is not trusted: every
count and length is bounded, and every tensor must lie within the file, before anything is allocated for it.
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import ConfigError

Scalar = str | int | float | bool
Value = Scalar | list[Scalar]

_MAX_KEYS = 65_536
_MAX_TENSORS = 1_000_000
_MAX_ARRAY = 4_000_000
_MAX_STRING = 16 * 2**20
_MAX_DIMS = 4
_MAX_ELEMENTS = 2**40
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


class TensorType(IntEnum):
    """Storage of a tensor, as ggml numbers it; only what can be read here."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    BF16 = 30


BLOCKS = {
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.BF16: (1, 2),
    TensorType.Q4_0: (32, 18),
    TensorType.Q4_1: (32, 20),
    TensorType.Q5_0: (32, 22),
    TensorType.Q5_1: (32, 24),
    TensorType.Q8_0: (32, 34),
    TensorType.Q2_K: (256, 84),
    TensorType.Q3_K: (256, 110),
    TensorType.Q4_K: (256, 144),
    TensorType.Q5_K: (256, 176),
    TensorType.Q6_K: (256, 210),
    TensorType.IQ4_NL: (32, 18),
}
"""Values and bytes of one block of each type."""


@dataclass(slots=True, frozen=True)
class GgufTensor:
    """Where a tensor lies and how it is stored."""

    type: TensorType
    shape: tuple[int, ...]
    """Rows first, as numpy writes it (the file has it the other way round)."""
    offset: int
    size_bytes: int


@dataclass(slots=True, frozen=True)
class GgufFile:
    """An open GGUF file. ``memory`` is the whole file, mapped read-only."""

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, GgufTensor]
    memory: NDArray[np.uint8]

    def blocks(self, name: str) -> NDArray[np.uint8]:
        """uint8[blocks, bytes of a block]: the tensor as stored, without a copy."""
        tensor = self.tensors[name]
        stored = self.memory[tensor.offset : tensor.offset + tensor.size_bytes]
        return stored.reshape(-1, BLOCKS[tensor.type][1])

    def text(self, key: str, default: str = "") -> str:
        """The string at ``key``; ``default`` where there is none."""
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise _bad(self.path, f"{key} is not a string")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """The number at ``key``.

        Raises:
            ConfigError: there is none, and no default.
        """
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _bad(self.path, f"the number {key} is missing")
        return value

    def strings(self, key: str) -> list[str]:
        """The list of strings at ``key``; empty where there is none."""
        value = self.metadata.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise _bad(self.path, f"{key} is not a list of strings")
        return [str(item) for item in value]


class _Cursor:
    """Reads values off the mapped file, front to back."""

    __slots__ = ("_memory", "_path", "position")

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self._path = path
        self._memory = memory
        self.position = 0

    def unpack(self, layout: str) -> tuple[int | float | bool, ...]:
        """Values of a ``struct`` layout."""
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def count(self, limit: int, what: str) -> int:
        """An unsigned 64-bit number, at most ``limit``."""
        number = int(self.unpack("<Q")[0])
        if number > limit:
            raise _bad(self._path, f"its header asks for {number} {what}, more than the {limit} that are accepted")
        return number

    def string(self) -> str:
        """A length and that many bytes of UTF-8."""
        return self._take(self.count(_MAX_STRING, "bytes of text")).decode("utf-8", errors="replace")

    def value(self) -> Value:
        """A type and a value of that type."""
        kind = int(self.unpack("<I")[0])
        if kind != _ARRAY:
            return self._reader(kind)()
        kind = int(self.unpack("<I")[0])
        length = self.count(_MAX_ARRAY, "array entries")
        if kind in _SCALARS:
            return list(self.unpack(f"<{length}{_SCALARS[kind][1]}"))
        read = self._reader(kind)
        return [read() for _ in range(length)]

    def _reader(self, kind: int) -> Callable[[], Scalar]:
        if kind == _STRING:
            return self.string
        if kind in _SCALARS:
            return lambda: self.unpack(_SCALARS[kind])[0]
        raise _bad(self._path, f"its header holds a value of the unknown type {kind}")

    def _take(self, size: int) -> bytes:
        taken = self._memory[self.position : self.position + size]
        if len(taken) != size:
            raise _truncated(self._path)
        self.position += size
        return taken


def open_gguf(path: Path) -> GgufFile:
    """Map a GGUF file and read its header.

    Raises:
        ConfigError: it is missing, no GGUF file, truncated, or stores a tensor in a way that cannot be read.
    """
    try:
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise _bad(path, f"it cannot be read ({error})") from error
    cursor = _Cursor(path, memory)
    if memory[:4] != b"GGUF":
        raise _bad(path, "it is not a GGUF file (the first four bytes say so)")
    cursor.position = 4
    version = cursor.unpack("<I")[0]
    if version not in (2, 3):
        raise _bad(path, f"it has GGUF version {version}; versions 2 and 3 can be read")
    num_tensors = cursor.count(_MAX_TENSORS, "tensors")
    num_keys = cursor.count(_MAX_KEYS, "keys")
    metadata = {cursor.string(): cursor.value() for _ in range(num_keys)}
    entries = [_entry(path, cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**16:
        raise _bad(path, f"its alignment {alignment!r} is not a number from 1 to 65536")
    start = -(-cursor.position // alignment) * alignment
    tensors = {name: GgufTensor(kind, shape, start + at, size) for name, kind, shape, at, size in entries}
    if any(tensor.offset + tensor.size_bytes > len(memory) for tensor in tensors.values()):
        raise _truncated(path)
    return GgufFile(path, metadata, tensors, np.frombuffer(memory, np.uint8))


def _entry(path: Path, cursor: _Cursor) -> tuple[str, TensorType, tuple[int, ...], int, int]:
    """Name, type, shape, offset and size of one tensor."""
    name = cursor.string()
    num_dims = int(cursor.unpack("<I")[0])
    if not 1 <= num_dims <= _MAX_DIMS:
        raise _bad(path, f"tensor {name!r} has {num_dims} dimensions")
    shape = tuple(cursor.count(_MAX_ELEMENTS, "values") for _ in range(num_dims))[::-1]
    number = int(cursor.unpack("<I")[0])
    if number not in TensorType.__members__.values():
        known = ", ".join(TensorType.__members__)
        raise _bad(path, f"tensor {name!r} is stored as ggml type {number}; what can be read: {known}")
    kind = TensorType(number)
    values, size = BLOCKS[kind]
    if prod(shape) == 0 or shape[-1] % values or prod(shape) > _MAX_ELEMENTS:
        raise _bad(path, f"tensor {name!r} of type {kind.name} cannot have the shape {shape}")
    return name, kind, shape, cursor.count(2**48, "bytes before a tensor"), prod(shape) // values * size


def _bad(path: Path, why: str) -> ConfigError:
    return ConfigError(f"{path} cannot be used: {why}", key="model.source")


def _truncated(path: Path) -> ConfigError:
    what = f"{path} is truncated: it ends after {path.stat().st_size:,} bytes, before its tensors do"
    return ConfigError(what, key="model.source", suggestion="copy or download the file again")
