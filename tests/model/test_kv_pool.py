"""What is written to the paged pool is what attention gathers."""

import jax.numpy as jnp
import numpy as np
import pytest

from model.kv_pool import element_type, stored, write
from model.layers.paged_xla import UNROLLED, gather_block

PAGES, KV, PAGE_SIZE = 7, 3, 4


@pytest.mark.parametrize("head_dim", [UNROLLED, UNROLLED + 16])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_block_holds_the_values_that_were_written_to_its_pages(dtype: str, head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    storage = stored(dtype, "xla")
    values = jnp.asarray(rng.normal(size=(PAGES * PAGE_SIZE, KV, head_dim)), jnp.float32).astype(dtype)
    place = rng.permutation(PAGES * PAGE_SIZE)
    pool = jnp.zeros((PAGES, KV, PAGE_SIZE, head_dim), storage)
    pool = write(pool, jnp.asarray(place // PAGE_SIZE), jnp.asarray(place % PAGE_SIZE), values)
    pages = rng.integers(0, PAGES, (5, 2)).astype(np.int32)
    block = gather_block(pool, jnp.asarray(pages))
    assert block.dtype == element_type(storage) == dtype
    at = (pages[:, :, None] * PAGE_SIZE + np.arange(PAGE_SIZE)).reshape(5, -1)
    expected = np.asarray(values)[np.argsort(place)][at].swapaxes(1, 2)
    assert (np.asarray(block) == expected).all()
