"""The GPU decode kernel against its plain twin (interpreted), and its lowering for CUDA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.kernels.paged_decode import Launch, paged_decode, paged_decode_ref
from model.layers.paged_xla import Blocking, attend_rows

PAGES, PAGE_SIZE, WIDTH = 40, 16, 9


def inputs(heads: int, kv: int, head_dim: int, lengths: list[int]) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(heads + kv)
    q = rng.normal(0, head_dim**-0.5, (len(lengths), heads, head_dim)).astype(np.float32)
    pool = rng.normal(size=(2, PAGES, kv, PAGE_SIZE, head_dim)).astype(np.float32)
    table = np.stack([rng.permutation(PAGES - 1)[:WIDTH] + 1 for _ in lengths]).astype(np.int32)
    return tuple(map(jnp.asarray, (q, pool[0], pool[1], table, np.array(lengths, np.int32))))


@pytest.mark.parametrize(("heads", "kv", "head_dim"), [(9, 3, 64), (4, 4, 32), (8, 1, 128)])
@pytest.mark.parametrize("launch", [Launch(2, 1, True), Launch(4, 2, True), Launch(1, 8, True)])
@pytest.mark.parametrize("window", [0, 1, 20, 100])
def test_the_interpreted_kernel_equals_its_twin(
    heads: int, kv: int, head_dim: int, launch: Launch, window: int
) -> None:
    launch = launch._replace(window=window)
    args = inputs(heads, kv, head_dim, [1, 16, 17, 100, 144, 0])
    expected = paged_decode_ref(*args, window)
    assert np.abs(np.asarray(paged_decode(*args, launch) - expected)).max() < 2e-5
    assert not np.asarray(expected)[-1].any()


def test_the_twin_sees_as_many_positions_as_the_window_has() -> None:
    q, k, _, table, _ = inputs(4, 4, 32, [100])
    q, v = jnp.zeros_like(q), jnp.ones_like(k)
    # equal scores: each value that is seen counts alike, and only the last 4 positions (96 to 99) are not 0
    v = v.at[table[0, :5]].set(0.0).at[table[0, 5]].set(0.0)
    assert np.allclose(paged_decode_ref(q, k, v, table, jnp.array([100]), 8), 4 / 8)
    assert np.allclose(paged_decode_ref(q, k, v, table, jnp.array([100])), 4 / 100)


@pytest.mark.parametrize("window", [0, 1, 20, 100])
@pytest.mark.parametrize("block_pages", [1, 2, 4])
def test_the_xla_back_end_equals_the_same_twin(block_pages: int, window: int) -> None:
    q, k, v, table, length = inputs(9, 3, 64, [1, 16, 17, 100, 144, 0])
    padded = jnp.pad(table, ((0, 0), (0, -WIDTH % block_pages)))
    got = attend_rows(q, k, v, padded, length, None, Blocking(PAGE_SIZE, block_pages, 8, window))
    difference = np.abs(np.asarray(got - paged_decode_ref(q, k, v, table, length, window)))
    assert difference[np.asarray(length) > 0].max() < 2e-5
    assert np.isfinite(difference).all()


@pytest.mark.parametrize(("heads", "kv", "head_dim", "window"), [(32, 8, 128, 0), (4, 1, 256, 512)])
def test_the_kernel_lowers_for_cuda(heads: int, kv: int, head_dim: int, window: int) -> None:
    q, k, v, table, length = inputs(heads, kv, head_dim, [100] * 4)
    args = (q, k.astype(jnp.bfloat16), v.astype(jnp.bfloat16), table, length)
    lowered = (
        jax.jit(paged_decode, static_argnums=5).trace(*args, Launch(window=window)).lower(lowering_platforms=("cuda",))
    )
    assert "paged_decode" in lowered.as_text()
