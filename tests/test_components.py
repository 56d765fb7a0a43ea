"""Single functions against their recordings (components.safetensors) and against float64 closed forms."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from sparse_vis.losses.clustering import prototype_cross_entropy
from sparse_vis.losses.koleo import koleo
from sparse_vis.losses.objective import expectation
from sparse_vis.losses.spec import LossSpec
from sparse_vis.losses.targets import balance
from sparse_vis.models.decoder import fourier_positions
from sparse_vis.ops.matching import entropic_match, entropic_plan, exact_match
from sparse_vis.ops.prototypes import expected_prototype, streamed_logsumexp
from sparse_vis.ops.sinkhorn import (
    assignments,
    column_error,
    column_potentials,
    published_potentials,
    row_mass,
)
from sparse_vis.types import Embeddings
from tests.golden_data import close, component
from tests.train.tiny_config import get_config

pytestmark = pytest.mark.fast
RECORDED = component("components")


def recorded(prefix):
    return {key.removeprefix(prefix): x for key, x in RECORDED.items() if key.startswith(prefix)}


def sinkhorn_float64(scores, temperature, iterations):
    """The published loop without its epsilon: shift columns, exp, then [columns, rows] in turn."""
    scaled = np.asarray(scores, np.float64) / temperature
    Q = np.exp(scaled - scaled.max(axis=0))
    for _ in range(iterations):
        Q = Q / Q.sum(axis=0)
        Q = Q / Q.sum(axis=1, keepdims=True)
    return Q


def our_sinkhorn(scores, temperature, iterations):
    potentials = jax.jit(column_potentials, static_argnums=(1, 2))(scores, temperature, iterations)
    return assignments(scores, potentials, temperature)


@pytest.mark.parametrize("key", [k for k in recorded("sinkhorn.temp") if k.startswith("0.5")])
def test_sinkhorn_agrees_with_the_recording(key):
    temperature, iterations = key.split(".iters")
    ours = our_sinkhorn(RECORDED["sinkhorn.scores"], float(temperature), int(iterations))
    close(ours, RECORDED[f"sinkhorn.temp{key}"])


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("temperature", [0.06, 0.5])
def test_sinkhorn_agrees_with_the_closed_form_without_epsilon(temperature, iterations):
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(96, 64)), jnp.float32)
    ours = np.asarray(our_sinkhorn(scores, temperature, iterations))
    close(ours, sinkhorn_float64(scores, temperature, iterations))
    np.testing.assert_allclose(ours.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("key", [k for k in recorded("sinkhorn.temp") if k.startswith("0.06")])
def test_the_published_epsilon_distorts_rows_and_ours_do_not(key):
    """At the published temperature the recording departs from the closed form; we stay with the form."""
    scores, iterations = RECORDED["sinkhorn.scores"], int(key.split(".iters")[1])
    exact = sinkhorn_float64(scores, 0.06, iterations)
    assert np.abs(RECORDED[f"sinkhorn.temp{key}"] - exact).max() > 1e-4
    close(our_sinkhorn(scores, 0.06, iterations), exact)


@pytest.mark.parametrize("key", recorded("sinkhorn.temp"))
def test_the_switch_gives_the_published_rows(key):
    temperature, iterations = float(key.split(".iters")[0]), int(key.split(".iters")[1])
    scores, published = RECORDED["sinkhorn.scores"], RECORDED[f"sinkhorn.temp{key}"]

    @jax.jit
    def switched(scores):
        rounds = published_potentials(scores, temperature, iterations, 1e-8)
        log_sums = jax.nn.logsumexp(scores / temperature + rounds[:, None], axis=-1)
        return row_mass(log_sums, 1e-8)[:, None] * assignments(scores, rounds[-1], temperature)

    close(switched(scores), published)


def test_the_switch_reaches_the_loss():
    """The clustering term with the published epsilon is the cross-entropy with the recorded rows."""
    scores, T = RECORDED["sinkhorn.scores"], np.asarray(RECORDED["sinkhorn.temp0.06.iters3"], np.float64)
    spec = LossSpec(**{**get_config().loss, "sinkhorn_epsilon": 1e-8}, prototype_chunk=16)
    identity = jnp.eye(scores.shape[-1])  # embeddings that are their own logits

    @jax.jit
    def loss(x, W):
        source = Embeddings(S=x, cls=x[:, :1], S_prototypes=identity, cls_prototypes=identity)
        potentials = balance(source, spec).S
        expected, mass = expectation(x, identity, potentials, W, spec)
        return prototype_cross_entropy(x, expected, mass, W, spec.student_temperature, 16)

    x = jnp.asarray(scores).reshape(6, 16, 64)
    logits = np.asarray(scores, np.float64) / spec.student_temperature
    log_p = logits - logits.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    np.testing.assert_allclose(loss(x, identity), -(T * log_p).sum(-1).mean(), rtol=1e-5)


def test_sinkhorn_stays_finite_where_exp_overflows():
    scores = 1e4 * jnp.asarray(np.random.default_rng(1).normal(size=(32, 16)), jnp.float32)
    assert np.isfinite(our_sinkhorn(scores, 0.06, 3)).all()


def test_column_error_falls_with_iterations():
    scores = jnp.asarray(np.random.default_rng(2).normal(size=(256, 32)), jnp.float32)
    potentials = jax.jit(column_potentials, static_argnums=(1, 2))
    errors = [float(column_error(scores, potentials(scores, 0.5, n), 0.5)) for n in (1, 3, 20)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3
    assert float(column_error(scores, jnp.zeros(32), 0.01)) > 0.05


@pytest.mark.parametrize("prefix", [k.removesuffix(".plan") for k in RECORDED if k.endswith(".plan")])
def test_entropic_matching(prefix):
    pred, target = RECORDED[f"{prefix}.pred"], RECORDED[f"{prefix}.target"]
    plans = jax.jit(jax.vmap(lambda a, b: entropic_plan(a, b, 0.1, 5)))(pred, target)
    close(plans, RECORDED[f"{prefix}.plan"])
    match = jax.jit(entropic_match, static_argnums=(2, 3))(pred, target, 0.1, 5)
    assert np.array_equal(match, RECORDED[f"{prefix}.index"])


def test_exact_matching_is_scipys_assignment():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 5, 9, 4)).astype(np.float32)
    ours = np.asarray(jax.jit(exact_match)(x, y))
    for a, b, match in zip(x, y, ours, strict=True):
        cost = np.linalg.norm(a[:, None] - b[None], axis=-1)
        rows, columns = linear_sum_assignment(cost)
        assert sorted(match) == list(range(9))
        np.testing.assert_allclose(cost[np.arange(9), match].sum(), cost[rows, columns].sum(), rtol=1e-6)


@pytest.mark.parametrize("key", [k for k in RECORDED if k == "koleo.grad"])
def test_koleo_and_its_gradient(key):
    value, gradient = jax.jit(jax.value_and_grad(koleo))(RECORDED["koleo.input"])
    close(value, RECORDED["koleo.loss"])
    error = np.linalg.norm(gradient - RECORDED[key]) / np.linalg.norm(RECORDED[key])
    assert error < 1e-4


def test_koleo_survives_equal_tokens():
    same = jnp.ones((1, 3, 4))
    value, gradient = jax.jit(jax.value_and_grad(koleo))(same)
    assert np.isfinite(value) and np.isfinite(gradient).all() and value > 10


@pytest.mark.parametrize("key", [k for k in recorded("fourier.") if k != "matrix"])
def test_fourier_positions(key):
    grid = tuple(int(x) for x in key.split("x"))
    expected = RECORDED[f"fourier.{key}"]
    positions = jax.jit(fourier_positions, static_argnums=1)(RECORDED["fourier.matrix"], grid)
    close(positions.reshape(expected.shape), expected)


@pytest.mark.parametrize("key", [k for k in RECORDED if k == "ce.loss"])
def test_cross_entropy(key):
    logits, targets = RECORDED["ce.logits"], RECORDED["ce.targets"]
    identity = jnp.eye(logits.shape[-1])  # embeddings that are their own logits
    ours = prototype_cross_entropy(logits, targets, jnp.ones((*logits.shape[:-1], 1)), identity, 0.12, 16)
    close(ours, RECORDED[key])


def direct_cross_entropy(x, W, V, g, student, sinkhorn):
    T = jax.lax.stop_gradient(jax.nn.softmax(x @ W / sinkhorn + g))
    return -jnp.mean(jnp.sum(T * jax.nn.log_softmax(x @ V / student), axis=-1))


@pytest.mark.parametrize("chunk", [0, 16, 48, 96])
def test_streamed_loss_and_gradients_equal_the_direct_form(chunk):
    rng = np.random.default_rng(4)
    x, W, V = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((20, 8), (8, 96), (8, 96)))
    g = jnp.asarray(rng.normal(size=96), jnp.float32)

    def streamed(x, V):
        target = expected_prototype(x, W, 0.5, g, V, chunk)
        return prototype_cross_entropy(x, target, jnp.ones((20, 1)), V, 0.7, chunk)

    def direct(x, V):
        return direct_cross_entropy(x, W, V, g, 0.7, 0.5)

    a, b = (jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(x, V) for f in (streamed, direct))
    np.testing.assert_allclose(a[0], b[0], rtol=1e-6)
    for ours, theirs in zip(a[1], b[1], strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)


def test_streamed_logsumexp_without_potentials():
    rng = np.random.default_rng(5)
    x, W = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((7, 4), (4, 32)))
    expected = np.log(np.exp(np.asarray(x, np.float64) @ np.asarray(W) / 0.3).sum(-1))
    for chunk in (0, 8):
        np.testing.assert_allclose(streamed_logsumexp(x, W, 0.3, jnp.zeros(32), chunk), expected, rtol=1e-6)


def test_matching_by_permutation():
    """A shuffled set is matched back to itself, by both methods."""
    rng = np.random.default_rng(6)
    y = jnp.asarray(rng.normal(size=(1, 6, 16)), jnp.float32)
    entropic = jax.jit(entropic_match, static_argnums=(2, 3))
    exact = jax.jit(exact_match)
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 97):
        x = y[:, jnp.array(order)]
        assert np.array_equal(entropic(x, y, 0.1, 5)[0], order)
        assert np.array_equal(exact(x, y)[0], order)
