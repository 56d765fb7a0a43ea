"""LayerNorm of the blocks against Flax's, and what it keeps for the backward pass."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sparse_vis.models.layers import EPSILON, LayerNorm, standardize


def example(dtype, shape=(3, 5, 96)):
    """Values whose mean is many standard deviations away from zero."""
    x = 7 + 0.5 * jax.random.normal(jax.random.key(0), shape)
    scale, bias = 1 + 0.3 * jax.random.normal(jax.random.key(1), (2, shape[-1]))
    return x.astype(dtype), scale, bias, jax.random.normal(jax.random.key(2), shape).astype(dtype)


def flaxs(x, scale, bias, epsilon=EPSILON):
    reference = nn.LayerNorm(epsilon=epsilon, use_fast_variance=False)
    return reference.apply({"params": {"scale": scale, "bias": bias}}, x).astype(x.dtype)


def ours(x, scale, bias, epsilon=EPSILON):
    return LayerNorm(x.shape[-1], epsilon).apply({"params": {"scale": scale, "bias": bias}}, x)


def assert_same_derivatives(functions, arguments, change, tolerance):
    """Values and gradients of both functions, which differ by no more than `tolerance` of their norm."""

    def derivatives(function, arguments, change):
        value, pull = jax.vjp(function, *arguments)
        return value, *pull(change)

    derivatives = jax.jit(derivatives, static_argnums=0)
    found, expected = (derivatives(function, arguments, change) for function in functions)
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        error = np.linalg.norm(np.float64(a) - np.float64(b))
        assert error <= tolerance * np.linalg.norm(np.float64(b))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_values_and_gradients_are_flaxs(dtype, tolerance):
    x, scale, bias, change = example(dtype)
    assert_same_derivatives((ours, flaxs), (x, scale, bias), change, tolerance)


def test_the_epsilon_is_the_given_one():
    """With rows so small that epsilon decides: theirs with 1e-12 would be ten times larger."""
    x, scale, bias, change = example("float32")
    functions = [functools.partial(function, epsilon=1e-6) for function in (ours, flaxs)]
    assert_same_derivatives(functions, (1e-4 * x, scale, bias), change, 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_scale_and_bias_in_the_linear_map_that_follows(dtype, tolerance):
    """Values, and gradients by all five arrays, of a linear map after flax's LayerNorm."""
    x, scale, bias, _ = example(dtype)
    kernel, shift = jax.random.normal(jax.random.key(3), (96, 8)), jax.random.normal(jax.random.key(4), (8,))

    def folded(x, scale, bias, kernel, shift):
        variables = {"params": {"scale": scale, "bias": bias}}
        kernel, shift = LayerNorm(96).apply(variables, kernel, shift, method="into")
        return standardize(x) @ kernel.astype(dtype) + shift.astype(dtype)

    def apart(x, scale, bias, kernel, shift):
        return flaxs(x, scale, bias) @ kernel.astype(dtype) + shift.astype(dtype)

    change = jax.random.normal(jax.random.key(5), (3, 5, 8), dtype)
    assert_same_derivatives((folded, apart), (x, scale, bias, kernel, shift), change, tolerance)


@pytest.mark.fast
def test_a_row_without_variance_has_finite_values_and_gradients():
    """As of a token of zeros."""
    values, pull = jax.vjp(standardize, jnp.zeros((2, 8)))
    assert not values.any()
    assert not np.asarray(pull(jnp.zeros((2, 8)))[0]).any()


@pytest.mark.fast
def test_only_the_input_is_kept_at_full_size():
    x = example("bfloat16")[0]
    kept = jax.tree.leaves(jax.vjp(standardize, x)[1])
    assert [(leaf.shape, leaf.dtype) for leaf in kept if leaf.size >= x.size] == [(x.shape, x.dtype)]


@pytest.mark.fast
def test_parameters_have_flaxs_names_and_start():
    x = jnp.ones((2, 8), jnp.bfloat16)
    ours, flaxs = (module.init(jax.random.key(0), x) for module in (LayerNorm(8), nn.LayerNorm()))
    jax.tree.map(np.testing.assert_array_equal, ours, flaxs)
