"""With JAX_ENABLE_X64 everything is computed as without: explicit 32-bit types everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_vis import api
from sparse_vis.build import build_model
from sparse_vis.evals.classes import knn
from sparse_vis.evals.classes.linear import SweepProtocol, fit_all
from sparse_vis.evals.factors.factorization import random_view
from sparse_vis.evals.features import Split
from sparse_vis.evals.maps.segmentation import segmentation_loss
from sparse_vis.evals.pixels import inception, lpips
from sparse_vis.models.stellar import init_params
from sparse_vis.train.health import measure
from sparse_vis.train.recipe import build_recipe
from sparse_vis.train.step import initial_state, train_step
from sparse_vis.types import Batch
from tests.train.tiny_config import get_config

DRAW = np.random.default_rng(0)
IMAGES = DRAW.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
PROTOCOL = SweepProtocol(learning_rates=(0.01, 0.1), validation_fraction=0.2, steps=5)
X, Y = DRAW.normal(size=(40, 6)).astype(np.float32), np.arange(40) % 3


def batch():
    sides = np.full(4, 24, np.int32)
    return Batch(image=IMAGES, height=sides, width=sides, index=np.arange(4, dtype=np.uint32))


def both_ways(compute):
    """The floating-point results with and without 64-bit types; asserts that all of them have 32 bits."""
    plain = jax.tree.map(np.asarray, jax.tree.leaves(compute()))
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, jax.tree.leaves(compute()))
    assert {x.dtype.name for x in found if jnp.issubdtype(x.dtype, jnp.floating)} <= {"float32"}
    return found, plain


def model_and_params():
    model = build_model(get_config())
    return model, init_params(model, jax.random.key(0))


def encoded():
    model, params = model_and_params()
    features = api.encode(model, params, IMAGES)
    return {"features": features, "pixels": api.reconstruct(model, params, features), "params": params}


COMPUTED = {
    "encode and reconstruct": encoded,
    "knn": lambda: list(knn.knn_predict(Split(X, Y), X[::-1], classes=3, ks=(1, 5)).values()),
    "probes": lambda: {
        name: (probe.weight, probe.bias) for name, probe in fit_all({"x": X}, Y, 3, PROTOCOL)[0].items()
    },
    "views of the factorization": lambda: random_view(jax.random.key(2), IMAGES[0], 12),
    "segmentation loss": lambda: segmentation_loss(
        jnp.asarray(X.reshape(2, 5, 8, 3)), jnp.arange(80).reshape(2, 5, 8) % 3
    ),
    "resize of Inception": lambda: inception.tf1_bilinear_matrix(32, 299),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_results_are_those_without_64_bit_types(name):
    found, plain = both_ways(COMPUTED[name])
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", ["published", "exact", "blocks"])
def test_no_float_of_a_run_has_64_bits(variant):
    """Shapes alone: what the golden step and its 64-bit twin do not cover."""
    config = get_config()
    if variant == "published":
        config.loss.update(sinkhorn_epsilon=1e-8, balance_over="microbatch")
        config.views.colour_per = "batch"
    elif variant == "exact":
        config.loss.matching, config.teacher.final_momentum = "exact", 0.999
    else:
        config.views.mask_kind = "block"
    config.efficiency.microbatches = 2
    recipe = build_recipe(config)
    with jax.enable_x64(True):
        state = jax.eval_shape(functools.partial(initial_state, recipe))
        after = jax.eval_shape(functools.partial(train_step, recipe), state, batch())
        matches = np.zeros((4, 2, 4), np.int32)
        health = jax.eval_shape(
            functools.partial(measure, recipe), state.params, state.teacher, batch(), matches
        )
    assert {x.dtype.itemsize for x in jax.tree.leaves((state, after, health))} == {4}


@pytest.mark.parametrize(
    "network",
    [(lpips.Lpips(), 2, np.float32), (inception.Inception(), 1, np.uint8)],
    ids=["lpips", "inception"],
)
def test_no_float_of_a_metric_s_network_has_64_bits(network):
    module, count, dtype = network
    images = [jax.ShapeDtypeStruct((1, 99, 99, 3), dtype)] * count
    with jax.enable_x64(True):
        found, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), *images)
    assert {x.dtype.name for x in jax.tree.leaves((found, variables))} == {"float32"}
