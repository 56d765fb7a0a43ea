"""Predictor and prototypes of the clustering terms (docs/method.md section 5)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sparse_vis.models.factorize import l2_normalize
from sparse_vis.models.linear import gelu, uniform_linear


class PrototypeHead(nn.Module):
    """MLP d -> hidden -> D, L2-normalised, and a matrix of K prototypes; always float32.

    Attributes:
        input_width: d. hidden: width of the MLP. dim: D. count: K.
    """

    input_width: int
    hidden: int
    dim: int
    count: int

    def setup(self):
        self.predictor_in = uniform_linear(self.hidden, self.input_width)
        self.predictor_out = uniform_linear(self.dim, self.hidden)
        drawn = nn.initializers.normal(1.0, jnp.float32)
        self.prototypes = self.param("prototypes", drawn, (self.dim, self.count))

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows D"]:
        """Embeddings on the unit sphere; logits are embeddings @ prototypes.

        Args:
            x: (..., d) tokens of any float dtype.

        Returns:
            (..., D) float32.
        """
        hidden = gelu(self.predictor_in(x.astype(jnp.float32)))
        return l2_normalize(self.predictor_out(hidden))
