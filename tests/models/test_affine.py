"""The blocks' linear map: what autodiff would give, as products of matrices, with gradients in float32."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_vis.models.block import Block, Sizes
from sparse_vis.models.layers import affine


def inputs(dtype: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, 5, 8), dtype)
    return x, jax.random.normal(keys[1], (8, 6)), jax.random.normal(keys[2], (6,))


def plain(x, kernel, bias):
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def loss(multiply):
    return lambda *inputs: jnp.sin(multiply(*inputs).astype(jnp.float32)).sum()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradients_are_those_of_autodiff(dtype):
    """But for the order of their sums, of 6 terms, 15 and 15: each addition rounds once."""
    given = inputs(dtype)
    np.testing.assert_array_equal(affine(*given), plain(*given))
    ours = jax.grad(loss(affine), (0, 1, 2))(*given)
    expected = jax.grad(loss(plain), (0, 1, 2))(*given)
    for a, b, terms in zip(ours, expected, (6, 15, 15), strict=True):
        assert a.dtype == b.dtype
        rounding = terms * float(jnp.finfo(dtype).eps) / 2 * float(jnp.abs(b).max())
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=0, atol=rounding)


@pytest.mark.fast
def test_gradients_of_parameters_are_not_rounded_to_bfloat16():
    x, kernel, bias = inputs("bfloat16")
    _, pull = jax.vjp(affine, x, kernel, bias)
    change = jax.random.normal(jax.random.key(1), (3, 5, 6), "bfloat16")
    _, kernel_change, bias_change = pull(change)
    rows, changes = np.float64(x).reshape(15, 8), np.float64(change).reshape(15, 6)
    np.testing.assert_allclose(kernel_change, rows.T @ changes, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bias_change, changes.sum(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.fast
def test_gradients_of_single_images():
    given = inputs("float32")
    ours, expected = (
        jax.vmap(jax.grad(loss(multiply), (1, 2)), (0, None, None))(*given) for multiply in (affine, plain)
    )
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_gradients_of_kernels_are_products_of_matrices():
    """As autodiff leaves them two axes are contracted; XLA lays factors out transposed for that on CPU."""
    block, x = Block(Sizes(32, 1, 2, 64)), jnp.ones((2, 8, 32))
    variables = block.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda variables: block.apply(variables, x).sum()))
    text = gradient.lower(variables).as_text()
    transposed = re.findall(r"stablehlo.transpose .*\(tensor<16x(\d+)xf32>\)", text)
    assert sorted(transposed) == ["32", "32", "32", "64"], "rows of qkv, attention_out, mlp_in and mlp_out"
    assert "contracting_dims = [0, 1] x [0, 1]" not in text
