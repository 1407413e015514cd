"""Pages on their way to host memory and back, on one device and on a mesh."""

from dataclasses import dataclass

import jax
import numpy as np
import pytest

from configs.schema import Parallel
from model.device_state import DeviceState, allocate, state_shapes
from model.host_pool import BLOCKS, HostPool, compile_copies, host_shape, staging_memory
from model.interface import PageId
from model.kv_pool import Pool
from model.loading.folder import model_folder
from model.loading.hf_config import read_config
from model.registry import blueprint
from sharding.mesh import build_mesh
from tests.model.harness import GOLDEN, NUM_PAGES, tiny_shapes

COUNT = BLOCKS[-1] + BLOCKS[0] + 1


def pages(first: int, count: int) -> list[PageId]:
    return [PageId(page) for page in range(first, first + count)]


def filled(state: DeviceState) -> DeviceState:
    """Different values in every place of the pool."""

    def fill(seed: int, array: jax.Array) -> jax.Array:
        values = np.random.default_rng(seed).integers(0, 1000, array.shape).astype(array.dtype)
        return jax.device_put(values, array.sharding)

    pool = state.pool
    k = tuple(fill(index, layer) for index, layer in enumerate(pool.k))
    v = tuple(fill(100 + index, layer) for index, layer in enumerate(pool.v))
    return state._replace(pool=Pool(k, v))


def content(state: DeviceState, where: list[PageId]) -> list[np.ndarray]:
    return [np.asarray(layer)[where] for layer in (*state.pool.k, *state.pool.v)]


@dataclass(slots=True, frozen=True)
class Memory:
    kind: str


@dataclass(slots=True, frozen=True)
class Device:
    """A device described by hand."""

    platform: str
    kinds: tuple[str, ...]

    def addressable_memories(self) -> list[Memory]:
        return [Memory(kind) for kind in self.kinds]


def test_blocks_go_through_pinned_memory_where_every_device_is_apart_from_the_host_and_has_it() -> None:
    gpu, old = Device("gpu", ("device", "pinned_host")), Device("gpu", ("device",))
    assert staging_memory([gpu, gpu]) == "pinned_host"
    assert staging_memory([gpu, old]) is None
    assert staging_memory([Device("cpu", ("device", "pinned_host"))]) is None
    assert staging_memory(jax.devices("cpu")) is None


@pytest.mark.parametrize(
    ("tensor", "dtype", "staging"), [(1, "float32", None), (2, "bfloat16", None), (1, "bfloat16", "pinned_host")]
)
def test_what_was_saved_comes_back_whole_in_other_pages(tensor: int, dtype: str, staging: str | None) -> None:
    # documents: O-19, O-20
    spec = read_config(model_folder(GOLDEN / "models" / "llama"))
    mesh = build_mesh(Parallel(tensor=tensor))
    shapes = state_shapes(blueprint(spec, mesh, dtype), tiny_shapes(512), NUM_PAGES)
    host, state = HostPool(COUNT + 2, shapes, mesh, b"model", staging), filled(allocate(shapes))
    source, target = pages(1, COUNT), pages(1 + COUNT, COUNT)
    held = pages(3, COUNT)[::-1]
    expected, untouched = content(state, source), content(state, pages(90, 4))

    handle = host.save(state, source, held)
    state = host.load(state, [PageId(1)] * COUNT, source)  # what is overwritten now was read before
    handle.result()
    state = host.load(state, held, target)
    for one, other in zip(content(state, target), expected, strict=True):
        assert np.array_equal(one, other)
    for one, other in zip(content(state, pages(90, 4)), untouched, strict=True):
        assert np.array_equal(one, other)

    data = host.read(held[0])
    assert len(data) == int(np.prod(host_shape(shapes))) * shapes.pool.k[0].dtype.itemsize
    assert host.write(PageId(2), data)
    state = host.load(state, [PageId(2)], target[:1])
    for layer, saved in zip(content(state, target[:1]), expected, strict=True):
        assert np.array_equal(layer[0], saved[0])
    assert not host.write(PageId(2), data[:-1])


def test_blocks_lie_in_the_memory_that_was_chosen_on_their_way_out_and_back() -> None:
    spec = read_config(model_folder(GOLDEN / "models" / "llama"))
    mesh = build_mesh(Parallel())
    shapes = state_shapes(blueprint(spec, mesh, "float32"), tiny_shapes(512), NUM_PAGES)
    for staging, kind in ((None, "device"), ("pinned_host", "pinned_host")):
        programs = compile_copies(shapes, mesh, staging)
        for size in BLOCKS:
            assert programs.gather[size].output_shardings.memory_kind == kind
            (_, _, values), _ = programs.scatter[size].input_shardings
            assert values.memory_kind == kind
