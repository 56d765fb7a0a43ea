"""Reconstruction of hidden patches: the objective of masked autoencoders."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from sparse_vis.models.encoder import patchify


def hidden_mse(
    x_hat: Float[Array, "B V H W 3"],
    x: Float[Array, "B V H W 3"],
    visible: Integer[Array, "B V keep"],
    n: int,
) -> Float[Array, ""]:
    """Mean squared error over the pixels of the hidden patches, for pixels in [0, 1].

    Args:
        x_hat: (B, V, h, w, 3) unclipped reconstructions of masked views. x: the views, in [0, 1].
        visible: indices of the kept patches of every view, row-major. n: patches of a (square) view.

    Returns:
        Scalar float32.

    Source: He et al. 2022, "Masked autoencoders are scalable vision learners", without normalised patches.
    """
    error = (x_hat - x).astype(jnp.float32).reshape(-1, *x.shape[2:])
    squares = jnp.mean(patchify(error, x.shape[2] // math.isqrt(n)) ** 2, axis=-1)
    rows = jnp.arange(len(squares))[:, None]
    hidden = jnp.ones_like(squares).at[rows, visible.reshape(len(squares), -1)].set(0.0)
    return jnp.sum(hidden * squares) / jnp.sum(hidden)
