"""Targets of matched sets (docs/method.md section 6): whose target each token is compared with."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def matched_targets(targets: Float[Array, "B r D"], match: Int[Array, "B V r"]) -> Float[Array, "B V r D"]:
    """The target of every token of every view, gathered through the matches.

    Args:
        targets: (B, r, D) expected prototypes of the r target tokens of an image.
        match: (B, V, r) int32 index of the target token of each view's token.

    Returns:
        (B, V, r, D).
    """
    return jnp.take_along_axis(targets[:, None], match[..., None], axis=2)
