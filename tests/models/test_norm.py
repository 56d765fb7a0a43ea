"""LayerNorm of the blocks against Flax's, and what it keeps for the way back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sparse_vis.models.norm import EPSILON, LayerNorm, normalize


def example(dtype, shape=(3, 5, 96)):
    """Values whose mean is many standard deviations away from zero."""
    x = 7 + 0.5 * jax.random.normal(jax.random.key(0), shape)
    scale, bias = 1 + 0.3 * jax.random.normal(jax.random.key(1), (2, shape[-1]))
    return x.astype(dtype), scale, bias, jax.random.normal(jax.random.key(2), shape).astype(dtype)


@pytest.mark.fast
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_values_and_gradients_are_flaxs(dtype, tolerance):
    x, scale, bias, change = example(dtype)
    reference = nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False)

    def theirs(x, scale, bias):
        return reference.apply({"params": {"scale": scale, "bias": bias}}, x).astype(dtype)

    values, pulls = zip(*(jax.vjp(f, x, scale, bias) for f in (normalize, theirs)), strict=True)
    assert values[0].dtype == dtype
    np.testing.assert_allclose(np.float32(values[0]), np.float32(values[1]), rtol=tolerance, atol=tolerance)
    for ours, expected in zip(pulls[0](change), pulls[1](change), strict=True):
        assert ours.dtype == expected.dtype
        error = np.linalg.norm(np.float64(ours) - np.float64(expected))
        assert error <= tolerance * np.linalg.norm(np.float64(expected))


@pytest.mark.fast
def test_a_row_without_variance_has_finite_values_and_gradients():
    """As of a token of zeros."""
    values, pull = jax.vjp(normalize, jnp.zeros((2, 8)), jnp.ones(8), jnp.zeros(8))
    assert not values.any()
    assert not any(np.asarray(x).any() for x in pull(jnp.zeros((2, 8))))


@pytest.mark.fast
def test_only_the_input_is_kept_at_full_size():
    x, scale, bias, _ = example("bfloat16")
    kept = jax.tree.leaves(jax.vjp(normalize, x, scale, bias)[1])
    assert [(leaf.shape, leaf.dtype) for leaf in kept if leaf.size >= x.size] == [(x.shape, x.dtype)]


@pytest.mark.fast
def test_parameters_have_flaxs_names_and_start():
    x = jnp.ones((2, 8), jnp.bfloat16)
    ours, flaxs = (module.init(jax.random.key(0), x) for module in (LayerNorm(), nn.LayerNorm()))
    jax.tree.map(np.testing.assert_array_equal, ours, flaxs)
