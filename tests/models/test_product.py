"""The product of the blocks' linear maps: what autodiff would give, as products of matrices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_vis.models.block import Block, Sizes
from sparse_vis.models.layers import product


def factors(dtype: str) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (3, 5, 8), dtype), jax.random.normal(keys[1], (8, 6), dtype)


def loss(multiply):
    return lambda x, kernel: jnp.sin(multiply(x, kernel).astype(jnp.float32)).sum()


@pytest.mark.fast
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradients_are_those_of_matmul(dtype):
    """But for the order of their sums, of 6 terms and of 15: each addition rounds once."""
    x, kernel = factors(dtype)
    np.testing.assert_array_equal(product(x, kernel), x @ kernel)
    ours = jax.grad(loss(product), (0, 1))(x, kernel)
    expected = jax.grad(loss(jnp.matmul), (0, 1))(x, kernel)
    for a, b, terms in zip(ours, expected, (6, 15), strict=True):
        assert a.dtype == b.dtype == dtype
        rounding = terms * float(jnp.finfo(dtype).eps) / 2 * float(jnp.abs(b).max())
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=0, atol=rounding)


@pytest.mark.fast
def test_gradients_of_single_images():
    x, kernel = factors("float32")
    ours, expected = (
        jax.vmap(jax.grad(loss(multiply), 1), (0, None))(x, kernel) for multiply in (product, jnp.matmul)
    )
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_gradients_of_kernels_are_products_of_matrices():
    """As autodiff leaves them two axes are contracted; XLA lays factors out transposed for that on CPU."""
    block, x = Block(Sizes(32, 1, 2, 64)), jnp.ones((2, 8, 32))
    variables = block.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda variables: block.apply(variables, x).sum()))
    text = gradient.lower(variables).as_text()
    transposed = re.findall(r"stablehlo.transpose .*\(tensor<16x(\d+)xf32>\)", text)
    assert sorted(transposed) == ["32", "32", "32", "64"], "rows of qkv, attention_out, mlp_in and mlp_out"
    assert "contracting_dims = [0, 1] x [0, 1]" not in text
