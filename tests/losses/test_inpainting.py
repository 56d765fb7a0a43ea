"""Reconstruction of hidden patches against sums by hand, and its place in the objective."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sparse_vis.losses.inpainting import hidden_mse
from sparse_vis.train.gradients import loss_fn

from sparse_vis.build import build_loss, build_model, build_views
from sparse_vis.models.stellar import init_params
from sparse_vis.types import Batch
from sparse_vis.views.make import make_views
from tests.train.tiny_config import get_config

PATCH, SIDE = 4, 12
VISIBLE = jnp.array([[[0, 4], [8, 2]]])  # one image, two views, two of nine patches each


def draw(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).random((1, 2, SIDE, SIDE, 3), np.float32))


@pytest.mark.fast
def test_only_hidden_patches_count():
    x, x_hat = draw(0), draw(1)
    expected = []
    for view in range(2):
        for patch in range(9):
            if patch not in VISIBLE[0, view]:
                row, column = divmod(patch, 3)
                box = np.s_[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
                expected.append(np.mean((x[0, view][box] - x_hat[0, view][box]) ** 2))
    assert len(expected) == 14
    np.testing.assert_allclose(hidden_mse(x_hat, x, VISIBLE, n=9), np.mean(expected), rtol=1e-6)


@pytest.mark.fast
def test_visible_patches_get_no_gradient():
    gradient = jax.grad(lambda x_hat: hidden_mse(x_hat, draw(0), VISIBLE, n=9))(draw(1))
    corner, below = gradient[0, 0, :PATCH, :PATCH], gradient[0, 0, PATCH : 2 * PATCH, :PATCH]
    assert np.all(corner == 0)  # patch 0 of view 0 is visible
    assert np.all(below != 0)  # patch 3 is not


@pytest.fixture(scope="module")
def tiny():
    """Totals and terms of one batch by (weight, bottleneck)."""
    config = get_config()
    rng = np.random.default_rng(0)
    batch = Batch(
        image=jnp.asarray(rng.integers(0, 256, (4, 24, 24, 3), np.uint8)),
        height=jnp.full(4, 24), width=jnp.full(4, 24), index=jnp.arange(4, dtype=jnp.uint32),
    )  # fmt: skip
    views = jax.jit(functools.partial(make_views, spec=build_views(config)))(jax.random.key(0), batch)
    params = init_params(build_model(config), jax.random.key(1))

    @functools.cache
    def compute(weight: float, bottleneck: str):
        with config.unlocked():
            config.loss.inpainting, config.model.bottleneck = weight, bottleneck
        model, spec = build_model(config), build_loss(config)
        total, (terms, outputs, _) = jax.jit(
            lambda params: loss_fn(params, model, spec, views, None, None, None)
        )(params)
        return total, terms, outputs

    return compute


def test_the_weight_adds_the_term_and_zero_leaves_it_out(tiny):
    without, absent, _ = tiny(0.0, "factors")
    total, terms, outputs = tiny(3.0, "factors")
    assert "inpainting" not in absent
    assert terms["inpainting"] > 0
    np.testing.assert_allclose(total, without + 3 * terms["inpainting"], rtol=1e-6)
    assert outputs.inpainted.shape == (4, 2, 24, 24, 3)


def test_a_dense_bottleneck_decodes_U_instead_of_Z(tiny):
    _, terms, outputs = tiny(0.0, "dense")
    _, factored, other = tiny(0.0, "factors")
    np.testing.assert_array_equal(outputs.factors.Z, outputs.tokens.U)
    assert np.abs(other.factors.Z - other.tokens.U).max() > 1e-3
    np.testing.assert_allclose(terms["token_clustering"], factored["token_clustering"], rtol=1e-6)
    assert abs(terms["reconstruction"] - factored["reconstruction"]) > 1e-6
