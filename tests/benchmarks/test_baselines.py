"""The baselines without factorization: errors against sums by hand, what they decode, what they train."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.evidence.baselines import baseline_recipe, hidden_mse
from sparse_vis.models.stellar import fold, init_params
from sparse_vis.train.recipe import build_recipe
from sparse_vis.types import Batch
from sparse_vis.views.make import make_views
from tests.train.tiny_config import get_config

PATCH, SIDE = 4, 12
VISIBLE = jnp.array([[0, 4], [8, 2]])  # two views, two of nine patches each


def draw(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).random((2, SIDE, SIDE, 3), np.float32))


@pytest.mark.fast
def test_only_hidden_patches_count():
    x, x_hat = draw(0), draw(1)
    expected = []
    for view in range(2):
        for patch in range(9):
            if patch not in VISIBLE[view]:
                row, column = divmod(patch, 3)
                box = np.s_[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
                expected.append(np.mean((x[view][box] - x_hat[view][box]) ** 2))
    assert len(expected) == 14
    error = jax.jit(functools.partial(hidden_mse, n=9))(x_hat, x, VISIBLE)
    np.testing.assert_allclose(error, np.mean(expected), rtol=1e-6)


@pytest.mark.fast
def test_visible_patches_get_no_gradient():
    gradient = jax.jit(jax.grad(lambda x_hat: hidden_mse(x_hat, draw(0), VISIBLE, n=9)))(draw(1))
    corner, below = gradient[0, :PATCH, :PATCH], gradient[0, PATCH : 2 * PATCH, :PATCH]
    assert np.all(corner == 0)  # patch 0 of view 0 is visible
    assert np.all(below != 0)  # patch 3 is not


def test_a_baseline_decodes_U_and_the_masked_one_sees_visible_patches_alone():
    config = get_config()
    rng = np.random.default_rng(0)
    batch = Batch(
        image=jnp.asarray(rng.integers(0, 256, (4, 24, 24, 3), np.uint8)),
        height=jnp.full(4, 24), width=jnp.full(4, 24), index=jnp.arange(4, dtype=jnp.uint32),
    )  # fmt: skip
    usual = build_recipe(config)
    views = jax.jit(functools.partial(make_views, spec=usual.views))(jax.random.key(0), batch)
    params = {"params": init_params(usual.model, jax.random.key(1))}
    dense, masked = (baseline_recipe(name, config) for name in ("dense", "masked"))
    theirs, ours = (jax.jit(r.model.apply)(params, views) for r in (usual, dense))
    np.testing.assert_array_equal(ours.factors.Z, ours.tokens.U)
    assert np.abs(theirs.factors.Z - theirs.tokens.U).max() > 1e-3
    np.testing.assert_allclose(ours.embeddings.S, theirs.embeddings.S, rtol=1e-6)
    assert np.abs(ours.reconstruction - theirs.reconstruction).max() > 1e-6

    loss = jax.jit(lambda views: masked.objective(masked.model.apply(params, views), None, masked.loss))
    total, terms = loss(views)
    np.testing.assert_allclose(total, config.loss.reconstruction * terms["reconstruction"], rtol=1e-6)
    tokens = usual.model.apply(params, fold(views.masked), fold(views.visible), method="encode")
    rows, n = np.arange(8)[:, None], np.prod(usual.model.grid(24, 24))
    whole = np.zeros((8, n, tokens.U.shape[-1]), np.float32)
    whole[rows, fold(views.visible)] = tokens.U
    decoded = usual.model.apply(params, jnp.asarray(whole), usual.model.grid(24, 24), method="decode")
    expected = hidden_mse(decoded, fold(views.masked), fold(views.visible), int(n))
    np.testing.assert_allclose(terms["reconstruction"], expected, rtol=1e-5)
