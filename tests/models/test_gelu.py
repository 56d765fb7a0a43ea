"""The exact GELU against PyTorch's and SciPy's normal distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch

from sparse_vis.models.layers import gelu

X = np.linspace(-12, 12, 4001)
VALUE_AND_SLOPE = jax.jit(jax.vmap(jax.value_and_grad(gelu)))


@pytest.mark.fast
def test_values_and_slopes_are_those_of_the_normal_distribution():
    x = jnp.asarray(X, jnp.float32)
    value, slope = VALUE_AND_SLOPE(x)
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(value, wide * scipy.stats.norm.cdf(wide), atol=2e-6)
    expected = scipy.stats.norm.cdf(wide) + wide * scipy.stats.norm.pdf(wide)
    np.testing.assert_allclose(slope, expected, atol=2e-6)


@pytest.mark.fast
@pytest.mark.parametrize(("ours", "theirs"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_equal_to_pytorch(ours, theirs):
    x = torch.tensor(X, dtype=theirs, requires_grad=True)
    y = torch.nn.functional.gelu(x)
    y.sum().backward()
    value, slope = VALUE_AND_SLOPE(jnp.asarray(X, ours))
    assert value.dtype == slope.dtype == ours
    step = 2e-6 if ours == "float32" else 2.0**-7  # neighbours in bfloat16
    np.testing.assert_allclose(np.float64(value), y.detach().double(), rtol=step, atol=2e-6)
    np.testing.assert_allclose(np.float64(slope), x.grad.double(), rtol=step, atol=2e-6)


@pytest.mark.fast
def test_forward_mode_works():
    tangent = jax.jvp(gelu, (jnp.float32(0.3),), (jnp.float32(2.0),))[1]
    np.testing.assert_allclose(tangent, 2 * jax.grad(gelu)(0.3), rtol=1e-6)
