"""Mixup: every image of a batch blended with another one, for fine-tuning."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from sparse_vis.types import Views


def mix(keys: Key[Array, " B"], views: Views, strength: float) -> Views:
    """Views whose `image` is share * image + (1 - share) * that of the image half a batch further on.

    The shares are drawn from Beta(strength, strength), one for each image; `share` and `other`, the class of
    the image mixed in, say how to count the labels. Half a batch is the same distance for a global batch and
    for its microbatches, so these have the same pairs.

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization".

    Args:
        keys: (B,), one for each image. B must be even.
    """
    count = views.image.shape[0]
    share: Float[Array, " B"] = jax.vmap(lambda key: jax.random.beta(key, strength, strength))(keys)
    other = jnp.roll(views.image, count // 2, axis=0)
    part = share[:, None, None, None]
    return views.replace(
        image=part * views.image + (1 - part) * other, other=jnp.roll(views.label, count // 2), share=share
    )
