"""Localization: L = softmax(cos(U, S) / tau) and Z = L S (docs/method.md section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sparse_vis.models.layers import uniform_linear
from sparse_vis.types import Factors

NORMALIZE_EPSILON = 1e-7


def l2_normalize(x: Float[Array, "*rows d"], epsilon: float = NORMALIZE_EPSILON) -> Float[Array, "*rows d"]:
    """x / max(|x|, epsilon) along the last axis, float32, with a zero gradient at x = 0."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    safe = jnp.where(square > epsilon**2, square, 1.0)
    return x / jnp.where(square > epsilon**2, jnp.sqrt(safe), epsilon)


class Factorizer(nn.Module):
    """Localization matrix L of patches over semantic tokens (float32, rows sum to one), and Z = L S."""

    width: int  # d
    temperature: float  # tau; published: 0.06
    dtype: str = "float32"  # of the two projections

    @nn.compact
    def __call__(self, U: Float[Array, "B n d"], S: Float[Array, "B r d"]) -> Factors:
        dense = uniform_linear(self.width, self.width, self.dtype, "dense_proj")(U)
        sparse = uniform_linear(self.width, self.width, self.dtype, "sparse_proj")(S)
        cosine = jnp.einsum("bnd,brd->bnr", l2_normalize(dense), l2_normalize(sparse))
        L = jax.nn.softmax(cosine / self.temperature, axis=-1)
        return Factors(L=L, Z=jnp.einsum("bnr,brd->bnd", L.astype(S.dtype), S))
