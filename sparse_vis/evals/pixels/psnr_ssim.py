"""PSNR and SSIM per image. Values outside of [0, 1] raise UserError."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sparse_vis.evals.features import AnyArray
from sparse_vis.runtime.errors import UserError

SMALLEST_MSE = 1e-10  # 100 dB: one perfect reconstruction must not make the mean over a data set infinite
WINDOW, SIGMA = 11, 1.5


def psnr(x: Float[AnyArray, "N H W C"], y: Float[AnyArray, "N H W C"]) -> Float[np.ndarray, " N"]:
    """Peak signal-to-noise ratio of each image, −10 log₁₀ mean (x − y)², in dB, at most 100.

    Average it over images (not the squared error) to compare with published numbers.
    """
    x, y = _in_range(x), _in_range(y)
    mse = np.mean(np.square(x - y), axis=(1, 2, 3), dtype=np.float64)
    return -10 * np.log10(np.maximum(mse, SMALLEST_MSE))


def ssim(x: Float[AnyArray, "N H W C"], y: Float[AnyArray, "N H W C"]) -> Float[np.ndarray, " N"]:
    """Structural similarity of each image, averaged over channels and all windows inside the image.

    Gaussian window 11×11, σ = 1.5; constants (0.01)² and (0.03)² for range 1; population covariance. Raises
    UserError for images smaller than the window.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
    """
    x, y = _in_range(x), _in_range(y)
    height, width = x.shape[1:3]
    if min(height, width) < WINDOW:
        raise UserError(
            f"SSIM needs images of at least {WINDOW} pixels per side, but these have {height}x{width}."
        )
    return np.asarray(_ssim(x, y))


@jax.jit
def _ssim(x: Float[Array, "N H W C"], y: Float[Array, "N H W C"]) -> Float[Array, " N"]:
    mean_x, mean_y = _window(x), _window(y)
    var_x, var_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean(axis=(1, 2, 3))


def _window(x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
    """Gaussian-weighted mean of every window inside the image, as two matrix products."""
    down, across = _band(x.shape[1]), _band(x.shape[2])
    return jnp.einsum("ih,nhwc,jw->nijc", down, x, across, precision=jax.lax.Precision.HIGHEST)


def _band(size: int) -> Float[np.ndarray, "windows size"]:
    """Matrix whose row i has the window's weights, starting at position i."""
    offset = np.arange(size) - np.arange(size - WINDOW + 1)[:, None] - WINDOW // 2
    weight = np.exp(-0.5 * (offset / SIGMA) ** 2) * (np.abs(offset) <= WINDOW // 2)
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


def _in_range(x: Float[AnyArray, "N H W C"]) -> Float[np.ndarray, "N H W C"]:
    x = np.asarray(x, np.float32)
    # Allows for rounding; refuses 0–255 images, unclipped predictions and NaN.
    if x.size == 0 or not (x.min() >= -1e-4 and x.max() <= 1 + 1e-4):
        raise UserError("image values must lie in [0, 1]; divide uint8 by 255 and clip reconstructions.")
    return x
