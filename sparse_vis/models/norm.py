"""LayerNorm that keeps its input for the way back, and nothing of the input's size beside it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

EPSILON = 1e-12  # the published encoder's


def _moments(x):
    """x in float32, its mean and 1 / standard deviation over the last axis."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    return wide, mean, jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + EPSILON)


@jax.custom_vjp
def normalize(
    x: Float[Array, "*B d"], scale: Float[Array, " d"], bias: Float[Array, " d"]
) -> Float[Array, "*B d"]:
    """Layer normalisation with epsilon 1e-12, in float32 inside, in x's dtype outside.

    Autodiff would keep three float32 arrays of x's size. This keeps x, and forms the rest again from its
    moments. Reverse mode only.
    """
    return _forward(x, scale, bias)[0]


def _forward(x, scale, bias):
    wide, mean, factor = _moments(x)
    return ((wide - mean) * (factor * scale) + bias).astype(x.dtype), (x, mean, factor, scale)


def _backward(kept, change):
    x, mean, factor, scale = kept

    def unit(x):
        return (x.astype(jnp.float32) - mean) * factor

    wide, rows = change.astype(jnp.float32), tuple(range(x.ndim - 1))
    pull = wide * scale
    pull_x = pull - pull.mean(-1, keepdims=True) - unit(x) * (pull * unit(x)).mean(-1, keepdims=True)
    # On NVIDIA GPUs XLA would share unit(x) with these sums and write it out in float32 for that.
    apart = jax.lax.platform_dependent(x, cuda=jax.lax.optimization_barrier, default=lambda x: x)
    pull_scale = (wide * unit(apart)).sum(rows)
    return (factor * pull_x).astype(x.dtype), pull_scale, wide.sum(rows)


normalize.defvjp(_forward, _backward)


class LayerNorm(nn.Module):
    """`normalize` with learned scale and bias, under the names and with the start of nn.LayerNorm."""

    @nn.compact
    def __call__(self, x: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return normalize(x, scale, self.param("bias", nn.initializers.zeros, x.shape[-1:]))
