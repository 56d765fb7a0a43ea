"""Bicubic interpolation as PyTorch does it: Keys kernel with a = -0.75, no antialiasing.

A separable resize is a product with two small matrices, one for rows and one for columns, which accelerators
compute faster than gathers. `jax.image.resize(..., "cubic")` has a = -0.5 (docs/method.md section 2).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sparse_vis.runtime.errors import UserError

AnyArray = Array | np.ndarray
A = -0.75
# For position tables and evaluation images: small matrices, and results are compared with recorded ones.
PRECISION = jax.lax.Precision.HIGHEST
# For crops and blurs in training, some 840 GFLOP for 128 images of B/16: TF32 on GPUs, three bfloat16
# products on TPUs, float32 on CPUs. On an H100, TF32 changed pixels by at most a quarter of an 8-bit level
# (rms 0.05).
VIEW_PRECISION = jax.lax.Precision.HIGH


def keys_kernel(distance: Float[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
    """Weight of a tap at this distance in pixels; a NumPy array gives a NumPy array.

    Source: Keys, "Cubic convolution interpolation for digital image processing", 1981.
    """
    x = distance
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = ((A * x - 5 * A) * x + 8 * A) * x - 4 * A
    where = x.__array_namespace__().where
    return where(x <= 1, near, where(x < 2, far, 0.0))


def _interpolation(
    source: Float[Array, " out"], offset: int | Array, length: int | Array, columns: int
) -> Float[Array, "out columns"]:
    """Weights of the four taps around each source coordinate; taps are clamped to [0, length) + offset."""
    base = jnp.floor(source)
    matrix = jnp.zeros((source.shape[0], columns), jnp.float32)
    for tap in (-1, 0, 1, 2):  # a loop: one array with a tap axis is six times slower on CPU
        weight = keys_kernel(jnp.abs(source - (base + tap)))
        index = jnp.clip(base.astype(jnp.int32) + tap, 0, length - 1) + offset
        matrix += jnp.where(index[:, None] == jnp.arange(columns), weight[:, None], 0.0)
    return matrix


def bicubic_matrix(size_in: int, size_out: int) -> Float[Array, "out in"]:
    """Matrix that resizes a row of `size_in` pixels to `size_out` pixels; rows sum to one.

    The outer edges stay where they are (align_corners=False). Raises UserError for a size below one.
    """
    if size_in < 1 or size_out < 1:
        raise UserError(f"cannot resize {size_in} to {size_out} pixels: both sizes must be at least 1")
    source = (jnp.arange(size_out, dtype=jnp.float32) + 0.5) * (size_in / size_out) - 0.5
    return _interpolation(source, 0, size_in, size_in)


def crop_matrix(
    offset: int | Int[Array, ""], length: int | Int[Array, ""], canvas: int, size_out: int
) -> Float[Array, "out canvas"]:
    """Matrix that cuts [offset, offset + length) out of a canvas and resizes it, align_corners=True.

    Pixels outside the piece have weight zero (docs/method.md section 6). Offset and length (at least 1) may
    be traced; the other sizes are static.
    """
    scale = (jnp.asarray(length, jnp.float32) - 1) / max(size_out - 1, 1)
    return _interpolation(jnp.arange(size_out, dtype=jnp.float32) * scale, offset, length, canvas)


def apply_matrices(
    image: Float[Array, "*batch H W C"],
    rows: Float[Array, "*#batch h H"],
    columns: Float[Array, "*#batch w W"],
    precision: jax.lax.Precision,
) -> Float[Array, "*batch h w C"]:
    """Separable resize, image[h, w] = sum over H, W of rows[h, H] columns[w, W] image[H, W]."""
    # With the channel axis in the middle, neither product needs a transposed copy of the image.
    image = jnp.moveaxis(image, -1, -2)
    image = jnp.einsum("...hH,...HCW->...hCW", rows, image, precision=precision)
    return jnp.moveaxis(jnp.einsum("...hCW,...wW->...hCw", image, columns, precision=precision), -2, -1)


def resize_bicubic(
    image: Float[Array, "*batch H W C"], size: tuple[int, int]
) -> Float[Array, "*batch h w C"]:
    """Bicubic resize of whole images or position tables to (h, w), as `bicubic_matrix`; not clipped."""
    rows, columns = (bicubic_matrix(*sides) for sides in zip(image.shape[-3:-1], size, strict=True))
    return apply_matrices(image, rows, columns, PRECISION)
