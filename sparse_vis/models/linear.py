"""Linear maps: initial values (docs/method.md section 5), and a product that is quick to differentiate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import random
from jaxtyping import Array, Float

INIT_STD = 0.02  # of the ViT, as published


def vit_init(std: float):
    """Initializer of the ViT; truncated at +-2 upstream, 100 standard deviations away."""
    return nn.initializers.normal(std, jnp.float32)


def uniform_init(fan_in: int):
    """Initializer: uniform in +-1 / sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=None: random.uniform(key, shape, dtype or "float32", -bound, bound)


def uniform_linear(features: int, fan_in: int, dtype=None, name: str | None = None) -> nn.Dense:
    """nn.Dense fan_in -> features whose weight and bias start uniform in +-1 / sqrt(fan_in)."""
    init = uniform_init(fan_in)
    return nn.Dense(features, dtype=dtype, kernel_init=init, bias_init=init, name=name)


@jax.custom_vjp
def product(x: Float[Array, "*B i"], kernel: Float[Array, "i o"]) -> Float[Array, "*B o"]:
    """x kernel. The kernel's gradient is one product of matrices, x^T g.

    Autodiff contracts all leading axes of x and g instead, and for that XLA lays x out transposed on CPU.
    Reverse mode only.
    """
    return jnp.matmul(x, kernel)


def _product_forward(x, kernel):
    return jnp.matmul(x, kernel), (x, kernel)


def _product_backward(kept, change):
    x, kernel = kept
    kernel_change = x.reshape(-1, x.shape[-1]).T @ change.reshape(-1, change.shape[-1])
    # Not kernel.T: a kernel split over devices would be transposed before it is gathered.
    last = change.ndim - 1
    return jax.lax.dot_general(change, kernel, (((last,), (1,)), ((), ()))), kernel_change


product.defvjp(_product_forward, _product_backward)


class Linear(nn.Module):
    """Parameters of a linear map, under the names and with the start of nn.Dense.

    Attributes:
        inputs, features: sizes. init_std: of the kernel.
    """

    inputs: int
    features: int
    init_std: float = INIT_STD

    def setup(self):
        self.kernel = self.param("kernel", vit_init(self.init_std), (self.inputs, self.features))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
