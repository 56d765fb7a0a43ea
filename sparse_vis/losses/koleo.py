"""KoLeo: spreads the semantic tokens of one image apart (docs/method.md section 6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparse_vis.models.factorize import l2_normalize

EPSILON = 1e-8


def koleo(S: Float[Array, "*sets r d"]) -> Float[Array, ""]:
    """Mean of -log(|s_i - s_nn(i)| / 2 + 1e-8), with nn(i) the nearest neighbour by cosine within the set.

    Tokens are L2-normalised in float32; 1e-8 is added to each difference, as in PyTorch's PairwiseDistance.
    """
    s = l2_normalize(S, EPSILON)
    cosine = jnp.einsum("...id,...jd->...ij", s, s)
    count = s.shape[-2]
    nearest = jnp.argmax(jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, cosine), axis=-1)
    neighbour = jnp.take_along_axis(s, jax.lax.stop_gradient(nearest)[..., None], axis=-2)
    square = jnp.sum((s - neighbour + EPSILON) ** 2, axis=-1)
    return -jnp.mean(jnp.log(0.5 * jnp.sqrt(square) + EPSILON))
