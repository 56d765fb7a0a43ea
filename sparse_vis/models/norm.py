"""LayerNorm, and its scale and bias as part of the linear map that follows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

EPSILON = 1e-12  # the published encoder's
MOMENT = "moment"  # names mean and scale of rows, for policies of what to keep


@jax.custom_vjp
def standardize(x: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
    """(x - mean) / sqrt(variance + 1e-12) over the last axis, in float32 inside, in x's dtype outside.

    Autodiff would keep three float32 arrays of x's size. This keeps x and two numbers per row. Reverse mode
    only.
    """
    return _forward(x)[0]


def _forward(x):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + EPSILON)
    mean, factor = checkpoint_name(mean, MOMENT), checkpoint_name(factor, MOMENT)
    return ((wide - mean) * factor).astype(x.dtype), (x, mean, factor)


def _backward(kept, change):
    x, mean, factor = kept
    unit, wide = (x.astype(jnp.float32) - mean) * factor, change.astype(jnp.float32)
    pull = wide - wide.mean(-1, keepdims=True) - unit * (wide * unit).mean(-1, keepdims=True)
    return ((factor * pull).astype(x.dtype),)


standardize.defvjp(_forward, _backward)


class LayerNorm(nn.Module):
    """Layer normalisation with epsilon 1e-12, in x's dtype; parameters named and started as nn.LayerNorm's.

    Attributes:
        width: d. scale, bias: (d,) float32 parameters.
    """

    width: int

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, (self.width,), jnp.float32)
        self.bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)

    def __call__(self, x: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
        return (standardize(x) * self.scale + self.bias).astype(x.dtype)

    def into(
        self, kernel: Float[Array, "d o"], bias: Float[Array, " o"]
    ) -> tuple[Float[Array, "d o"], Float[Array, " o"]]:
        """Kernel and bias that do to `standardize(x)` what those given do to `self(x)`.

        So the gradients of scale and bias follow from those of the product, without sums over all rows.
        """
        return self.scale[:, None] * kernel, bias + (self.bias[:, None] * kernel).sum(axis=0)
