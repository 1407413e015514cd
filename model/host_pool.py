"""KV pages in host memory, and the two little programs that bring them there and back.

Host pages are one array ``[pages, 2 * layers, kv_heads, page_size, head_dim]``, keys of every layer first, so that a
page is one run of bytes. A copy in either direction is cut into blocks of a few fixed sizes; padding is page 0.

Where the device is apart from the host, a block goes through pinned memory (``staging_memory``): only from and to there
can a device copy beside its computing. A step cannot begin before all its arguments are there, hence it waits for a
load as a whole, never layer by layer.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from configs.schema import Model
from model.device_state import DeviceState
from model.interface import PageId
from model.kv_pool import POOL_AXES, Pool
from model.loading.folder import ModelFolder
from sharding.axes import named

BLOCKS: Final = (4, 32)
"""Pages of one program. On a CPU a block of 32 of SmolLM2-135M's pages is 12 MB."""


HOST_AXES: Final = (POOL_AXES[0], None, *POOL_AXES[1:])
PINNED: Final = "pinned_host"


class Memory(Protocol):
    """A memory that a device reaches."""

    @property
    def kind(self) -> str:
        """As JAX calls it."""
        ...


class Device(Protocol):
    """What a ``jax.Device`` says of its memories."""

    @property
    def platform(self) -> str:
        """``cpu``, ``gpu`` or ``tpu``, or another."""
        ...

    def addressable_memories(self) -> Sequence[Memory]:
        """All that it reaches."""
        ...


def staging_memory(devices: Iterable[Device]) -> str | None:
    """The kind of memory through which blocks go, if every device has it; None where that would be one copy more."""
    for device in devices:
        if device.platform == "cpu" or PINNED not in [memory.kind for memory in device.addressable_memories()]:
            return None
    return PINNED


def gather_pages(state: DeviceState, pages: jax.Array) -> jax.Array:
    """Pages int32[n] of every layer: [n, 2 * layers, kv_heads, page_size, head_dim]."""
    return jnp.stack([layer[pages] for layer in (*state.pool.k, *state.pool.v)], axis=1)


def scatter_pages(state: DeviceState, pages: jax.Array, values: jax.Array) -> DeviceState:
    """``state`` with ``values``, as ``gather_pages`` gives them, in pages int32[n]."""
    layers = len(state.pool.k)

    def put(arrays: tuple[jax.Array, ...], first: int) -> tuple[jax.Array, ...]:
        return tuple(array.at[pages].set(values[:, first + index]) for index, array in enumerate(arrays))

    return state._replace(pool=Pool(put(state.pool.k, 0), put(state.pool.v, layers)))


@dataclass(slots=True, frozen=True)
class CopyPrograms:
    """The compiled programs by size of block."""

    gather: dict[int, jax.stages.Compiled]
    scatter: dict[int, jax.stages.Compiled]


def compile_copies(state: DeviceState, mesh: Mesh, staging: str | None) -> CopyPrograms:
    """Compile for a state given as shapes with shardings, and blocks that lie in memory of the kind ``staging``."""
    page, sharding = state.pool.k[0], named(mesh, HOST_AXES)
    block = sharding if staging is None else sharding.with_memory_kind(staging)

    def put(state: DeviceState, pages: jax.Array, values: jax.Array) -> DeviceState:
        return scatter_pages(state, pages, values if staging is None else jax.device_put(values, sharding))

    gather: dict[int, jax.stages.Compiled] = {}
    scatter: dict[int, jax.stages.Compiled] = {}
    for size in BLOCKS:
        pages = jax.ShapeDtypeStruct((size,), jnp.int32)
        values = jax.ShapeDtypeStruct((size, *host_shape(state)), page.dtype, sharding=block)
        gather[size] = jax.jit(gather_pages, out_shardings=block).lower(state, pages).compile()
        scatter[size] = jax.jit(put, donate_argnums=(0,)).lower(state, pages, values).compile()
    return CopyPrograms(gather, scatter)


def host_shape(state: DeviceState) -> tuple[int, ...]:
    """Shape of one host page."""
    return (2 * len(state.pool.k), *state.pool.k[0].shape[1:])


class SaveHandle:
    """Blocks of pages on their way to host memory."""

    def __init__(self, array: np.ndarray, blocks: list[tuple[jax.Array, np.ndarray]]) -> None:
        self._array = array
        self._blocks = blocks
        for block, _ in blocks:
            block.copy_to_host_async()

    def result(self) -> None:
        """Wait for them and put them where they belong."""
        for block, host_pages in self._blocks:
            self._array[host_pages] = np.asarray(block)[: len(host_pages)]
        self._blocks.clear()


class HostPool:
    """``HostPages`` beside a runner's state.

    Args:
        num_pages: numbered from 1.
        state: as shapes with shardings on ``mesh``.
        mesh: of the pool.
        fingerprint: of model and weights; dtype and layout are added.
        staging: kind of the memory through which blocks go; see ``staging_memory``.
    """

    def __init__(
        self, num_pages: int, state: DeviceState, mesh: Mesh, fingerprint: bytes, staging: str | None = None
    ) -> None:
        dtype = state.pool.k[0].dtype
        # the system gives zeros without touching them, so that memory is taken as pages are saved; page 0 stays zero
        self._array = np.zeros((num_pages + 1, *host_shape(state)), dtype)
        self._programs = compile_copies(state, mesh, staging)
        self._fingerprint = hashlib.sha256(fingerprint + f"{host_shape(state)} {dtype}".encode()).digest()

    @property
    def fingerprint(self) -> bytes:
        """What the bytes of a page depend on beside its tokens."""
        return self._fingerprint

    def save(self, state: DeviceState, pages: Sequence[PageId], host_pages: Sequence[PageId]) -> SaveHandle:
        """Begin to copy pages of ``state``."""
        blocks: list[tuple[jax.Array, np.ndarray]] = []
        for size, at in _cut(len(pages)):
            block = self._programs.gather[size](state, _padded(pages[at : at + size], size))
            blocks.append((block, np.array(host_pages[at : at + size], np.int32)))
        return SaveHandle(self._array, blocks)

    def load(self, state: DeviceState, host_pages: Sequence[PageId], pages: Sequence[PageId]) -> DeviceState:
        """``state``, which is donated, with host pages in its pages."""
        for size, at in _cut(len(pages)):
            # a fresh array each time: the device may read it long after this returns
            values = self._array[_padded(host_pages[at : at + size], size)]
            state = self._programs.scatter[size](state, _padded(pages[at : at + size], size), values)
        return state

    def read(self, host_page: PageId) -> bytes:
        """The bytes of a host page."""
        return self._array[host_page].tobytes()

    def write(self, host_page: PageId, data: bytes) -> bool:
        """Fill a host page; False if ``data`` is no page."""
        page = self._array[host_page]
        if len(data) != page.nbytes:
            return False
        page[...] = np.frombuffer(data, page.dtype).reshape(page.shape)
        return True


def fingerprint(model: Model, folder: ModelFolder) -> bytes:
    """Which weights and which configuration they are, without reading them: names, sizes and times of the files.

    A model that was fetched keeps them across starts; one that was changed in place does not.
    """
    digest = hashlib.sha256(f"{model.load_format} {model.seed}".encode())
    for path in sorted(path for path in folder.path.rglob("*") if path.is_file()):
        status = path.stat()
        digest.update(f"{path.relative_to(folder.path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.digest()


def _cut(count: int) -> list[tuple[int, int]]:
    """Blocks that cover ``count`` pages: size and first page of each."""
    cuts: list[tuple[int, int]] = []
    at = 0
    while at < count:
        size = next((size for size in BLOCKS if size >= count - at), BLOCKS[-1])
        cuts.append((size, at))
        at += size
    return cuts


def _padded(pages: Sequence[PageId], size: int) -> np.ndarray:
    padded = np.zeros(size, np.int32)
    padded[: len(pages)] = pages
    return padded
