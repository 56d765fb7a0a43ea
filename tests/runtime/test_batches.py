"""Rows run in batches of one size."""

import jax
import numpy as np
import pytest

from sparse_vis.runtime.batches import run_in_batches
from sparse_vis.runtime.progress import Progress

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("size", [1, 4, 7, 20])
def test_any_size_gives_the_same_rows_from_one_program(size):
    rng, shapes, done = np.random.default_rng(0), [], Progress("rows", 7)
    x, y = rng.normal(size=(7, 3)).astype(np.float32), rng.integers(0, 9, 7)

    @jax.jit
    def call(x, y):
        shapes.append((x.shape, y.shape))
        return {"sum": x.sum(axis=1) + y, "both": (x[:, :2], y)}

    found = run_in_batches(call, size, x, y, progress=done)
    assert shapes == [((size, 3), (size,))] and done.done == 7
    np.testing.assert_allclose(found["sum"], x.sum(axis=1) + y, rtol=1e-6)
    np.testing.assert_array_equal(found["both"][0], x[:, :2])
    np.testing.assert_array_equal(found["both"][1], y)
    assert all(isinstance(array, np.ndarray) for array in jax.tree.leaves(found))


def test_a_small_batch_is_padded_with_its_last_row():
    seen = []
    run_in_batches(lambda x: seen.append(x) or x, 3, np.arange(8).reshape(4, 2))
    np.testing.assert_array_equal(seen[1], [[6, 7]] * 3)
