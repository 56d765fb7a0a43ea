"""The parts of a block: linear maps and their initial values (docs/method.md section 5), LayerNorm, GELU."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import random
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

INIT_STD = 0.02  # standard deviation of the ViT's initial weights, as published


def vit_init(std: float):
    """Normal initializer. The published one truncates at +-2, 100 standard deviations, which does nothing."""
    return nn.initializers.normal(std, jnp.float32)


def uniform_init(fan_in: int):
    """Initializer: uniform in +-1 / sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=None: random.uniform(key, shape, dtype or "float32", -bound, bound)


def uniform_linear(features: int, fan_in: int, dtype=None, name: str | None = None) -> Dense:
    """Dense fan_in -> features; initial kernel and bias are uniform in +-1 / sqrt(fan_in)."""
    init = uniform_init(fan_in)
    return Dense(features, dtype, init, init, name=name)


@jax.custom_vjp
def affine(
    x: Float[Array, "*B i"], kernel: Float[Array | np.ndarray, "i o"], bias: Float[Array | np.ndarray, " o"]
) -> Float[Array, "*B o"]:
    """x @ kernel + bias in x's dtype; gradients of the parameters, which are float32, are float32 too.

    Autodiff would return them in x's dtype: in bfloat16 they would be rounded on each device and in every sum
    over devices. The kernel's gradient is one matrix product, x^T g, where g is the output's; autodiff
    would contract all leading axes of x and g, for which XLA on CPU transposes x in memory. Reverse mode
    only.
    """
    return _affine_forward(x, kernel, bias)[0]


def _affine_forward(x, kernel, bias):
    kernel = kernel.astype(x.dtype)
    return jnp.matmul(x, kernel) + bias.astype(x.dtype), (x, kernel)


def _affine_backward(kept, change):
    x, kernel = kept
    rows = x.reshape(-1, x.shape[-1]), change.reshape(-1, change.shape[-1])
    kernel_change = jnp.matmul(rows[0].T, rows[1], preferred_element_type=jnp.float32)
    bias_change = change.sum(axis=tuple(range(change.ndim - 1)), dtype=jnp.float32)
    # Not kernel.T: XLA would transpose a sharded kernel before its all-gather.
    last = change.ndim - 1
    return jax.lax.dot_general(change, kernel, (((last,), (1,)), ((), ()))), kernel_change, bias_change


affine.defvjp(_affine_forward, _affine_backward)


class Dense(nn.Module):
    """`affine` and its parameters, computed in `dtype` (None: that of x); names as in nn.Dense."""

    features: int
    dtype: str | None
    kernel_init: Callable
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "*B i"]) -> Float[Array, "*B o"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return affine(jnp.asarray(x, self.dtype), kernel, bias)


class Linear(nn.Module):
    """Parameters of a linear map, named as in nn.Dense: kernel drawn by `vit_init`, bias zero."""

    inputs: int
    features: int
    init_std: float = INIT_STD

    def setup(self):
        self.kernel = self.param("kernel", vit_init(self.init_std), (self.inputs, self.features))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)


EPSILON = 1e-12  # of the published encoder and decoder; other backbones set config.model.norm_epsilon
MOMENT = "moment"  # name of each row's mean and 1 / standard deviation, for `kept_by_products`


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardize(x: Float[Array, "*B d"], epsilon: float = EPSILON) -> Float[Array, "*B d"]:
    """(x - mean) / sqrt(variance + epsilon) over the last axis, computed in float32, returned in x's dtype.

    For the backward pass it saves x and two numbers per row; autodiff would save three float32 arrays of x's
    size. Reverse mode only.
    """
    return _forward(x, epsilon)[0]


def _forward(x, epsilon):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    mean, factor = checkpoint_name(mean, MOMENT), checkpoint_name(factor, MOMENT)
    return ((wide - mean) * factor).astype(x.dtype), (x, mean, factor)


def _backward(_, kept, change):
    x, mean, factor = kept
    unit, wide = (x.astype(jnp.float32) - mean) * factor, change.astype(jnp.float32)
    pull = wide - wide.mean(-1, keepdims=True) - unit * (wide * unit).mean(-1, keepdims=True)
    return ((factor * pull).astype(x.dtype),)


standardize.defvjp(_forward, _backward)


class LayerNorm(nn.Module):
    """Layer normalisation in x's dtype; names and initial values as in nn.LayerNorm."""

    width: int
    epsilon: float = EPSILON

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, (self.width,), jnp.float32)
        self.bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)

    def __call__(self, x: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
        return (standardize(x, self.epsilon) * self.scale + self.bias).astype(x.dtype)

    def into(
        self, kernel: Float[Array, "d o"], bias: Float[Array, " o"]
    ) -> tuple[Float[Array, "d o"], Float[Array, " o"]]:
        """(kernel', bias') such that standardize(x) @ kernel' + bias' equals self(x) @ kernel + bias.

        Gradients of scale and bias then come from the kernel's gradient, without sums over all rows of x.
        """
        return self.scale[:, None] * kernel, bias + (self.bias[:, None] * kernel).sum(axis=0)


@jax.custom_jvp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x (1 + erf(x / sqrt 2)) / 2, as in PyTorch, computed in float32, returned in x's dtype.

    `jax.nn.gelu` computes erfc, with which an MLP and its gradient take about twice as long on CPU.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _normal_cdf(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


@gelu.defjvp
def _gelu_jvp(primals: tuple, tangents: tuple) -> tuple:
    """Computes the derivative with the value, in x's dtype: one array is saved for the backward pass."""
    (x,), (change,) = primals, tangents
    wide = jnp.asarray(x, jnp.float32)
    cdf = _normal_cdf(wide)
    slope = cdf + wide * jnp.exp(-0.5 * wide**2) * math.sqrt(0.5 / math.pi)
    return (wide * cdf).astype(change.dtype), change * slope.astype(change.dtype)
