"""Bicubic matrices against the recorded position tables and against plain loops."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_vis.ops.resize import bicubic_matrix, crop_matrix, resize_bicubic
from sparse_vis.runtime.errors import UserError
from tests.golden_data import close, component

pytestmark = pytest.mark.fast
resize = jax.jit(resize_bicubic, static_argnums=1)
matrix, cut = jax.jit(bicubic_matrix, static_argnums=(0, 1)), jax.jit(crop_matrix, static_argnums=(2, 3))


def matrix_of(size_in, size_out, align_corners):
    return cut(0, size_in, size_in, size_out) if align_corners else matrix(size_in, size_out)


def keys_sample(row, x):
    """Keys' interpolation of a row at coordinate x, from its definition with a = -0.75, in float64."""
    total, base = 0.0, int(np.floor(x))
    for tap in range(base - 1, base + 3):
        d, a = abs(x - tap), -0.75
        if d <= 1:
            weight = (a + 2) * d**3 - (a + 3) * d**2 + 1
        else:
            weight = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0
        total += weight * row[min(max(tap, 0), len(row) - 1)]
    return total


@pytest.mark.parametrize("key", [key for key in component("components") if key.startswith("posembed.grid")])
def test_position_tables_match_the_recordings(key):
    table, expected = component("components")["posembed.table"][:, 1:], component("components")[key]
    side = math.isqrt(table.shape[1])
    close(resize(table.reshape(1, side, side, -1), expected.shape[1:3]), expected)


@pytest.mark.parametrize("size_out", [1, 3, 7, 20])
@pytest.mark.parametrize("align_corners", [True, False])
def test_matrix_is_keys_interpolation(size_out, align_corners):
    row = np.random.default_rng(0).normal(size=7)
    if align_corners:
        at = np.linspace(0, 6, size_out) if size_out > 1 else np.zeros(1)
    else:
        at = (np.arange(size_out) + 0.5) * 7 / size_out - 0.5
    expected = [keys_sample(row, x) for x in at]
    np.testing.assert_allclose(matrix_of(7, size_out, align_corners) @ row, expected, atol=1e-5)


@pytest.mark.parametrize("align_corners", [True, False])
def test_same_size_is_the_identity_and_constants_stay(align_corners):
    np.testing.assert_allclose(matrix_of(9, 9, align_corners), np.eye(9), atol=1e-6)
    np.testing.assert_allclose(matrix_of(9, 23, align_corners).sum(1), 1, atol=1e-6)


def test_crop_cuts_out_first_for_every_traced_piece():
    for offset, length in itertools.product([0, 1, 4], [1, 2, 3, 8]):
        ours = np.asarray(cut(jnp.int32(offset), jnp.int32(length), 12, 6))
        piece = slice(offset, offset + length)
        row = np.random.default_rng(offset).normal(size=length)
        expected = [keys_sample(row, x) for x in np.linspace(0, length - 1, 6)]
        np.testing.assert_allclose(ours[:, piece] @ row, expected, atol=1e-5)
        assert not np.delete(ours, np.arange(12)[piece], axis=1).any()


def test_rows_and_columns_are_not_exchanged():
    image = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 8, 3)), jnp.float32)
    resized = resize(image, (5, 4))
    assert resized.shape == (2, 5, 4, 3)
    expected = [keys_sample(np.asarray(image[1, 2, :, 0]), (x + 0.5) * 2 - 0.5) for x in range(4)]
    np.testing.assert_allclose(resized[1, 2, :, 0], expected, atol=1e-5)


def test_empty_sizes_are_refused():
    with pytest.raises(UserError, match="at least 1"):
        bicubic_matrix(4, 0)
