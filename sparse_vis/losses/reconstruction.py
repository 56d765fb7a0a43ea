"""Reconstruction terms (docs/method.md section 4)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def pixel_mse(x_hat: Float[Array, "B h w 3"], x: Float[Array, "B H W 3"]) -> Float[Array, ""]:
    """Mean squared error of pixels in [0, 1], over the area h x w covered by patches."""
    return jnp.mean((x_hat.astype(jnp.float32) - x[:, : x_hat.shape[1], : x_hat.shape[2]]) ** 2)


def psnr_of(mse: float) -> float:
    """Peak signal-to-noise ratio in dB for a mean squared error of pixels in [0, 1]; at most 100."""
    return -10 * math.log10(max(mse, 1e-10))


def code_cross_entropy(logits: Float[Array, "B n C"], codes: Int[Array, "B n"]) -> Float[Array, ""]:
    """Mean cross-entropy of the code logits against the tokenizer's codes, in nats."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)
