"""Random resized crops of a canvas, with traced boxes and static output sizes (docs/method.md section 6)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from sparse_vis.ops.resize import VIEW_PRECISION, apply_matrices, crop_matrix

Box = tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""], Int[Array, ""]]  # top, left, height, width
AnyArray = Array | np.ndarray
Scale = tuple[float, float] | Float[Array, " 2"]
Side = AnyArray | int
BOX_DRAWS = 10
UNIFORMS = 2 * BOX_DRAWS + 2  # random numbers per box: areas, aspects, position


def sample_box(
    key: PRNGKeyArray,
    height: Int[Array, ""],
    width: Int[Array, ""],
    scale: Scale,
    aspect: tuple[float, float],
) -> Box:
    """Box (top, left, height, width): the first of ten draws that fits, else the largest centred box.

    Args:
        height, width: pixels of the image. scale: range of box area / image area, uniform; may be traced.
        aspect: range of width / height, log-uniform.
    """
    # One random draw per box: on CPU each further one costs half a second of compilation.
    return box_of(jax.random.uniform(key, (UNIFORMS,), jnp.float32), height, width, scale, aspect)


def box_of(
    uniform: Float[AnyArray, " 22"], height: Side, width: Side, scale: Scale, aspect: tuple[float, float]
) -> tuple:
    """The box of `sample_box` from its random numbers in [0, 1); NumPy arrays give NumPy results."""
    xp = uniform.__array_namespace__()
    area = (scale[0] + (scale[1] - scale[0]) * uniform[:BOX_DRAWS]) * (height * width)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = xp.exp(low + (high - low) * uniform[BOX_DRAWS:-2])
    widths = xp.round(xp.sqrt(area * ratio)).astype(xp.int32)
    heights = xp.round(xp.sqrt(area / ratio)).astype(xp.int32)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first, found = xp.argmax(fits), xp.any(fits)

    largest_height = xp.clip(xp.round(width / aspect[0]).astype(xp.int32), 1, height)
    largest_width = xp.clip(xp.round(height * aspect[1]).astype(xp.int32), 1, width)
    box_height = xp.where(found, heights[first], largest_height)
    box_width = xp.where(found, widths[first], largest_width)
    spare_height, spare_width = height - box_height, width - box_width
    top = xp.where(found, xp.floor(uniform[-2] * (spare_height + 1)).astype(xp.int32), spare_height // 2)
    left = xp.where(found, xp.floor(uniform[-1] * (spare_width + 1)).astype(xp.int32), spare_width // 2)
    return top, left, box_height, box_width


def crop(canvas: Shaped[Array, "Hc Wc 3"], box: Box, size: int) -> Float[Array, "size size 3"]:
    """The box of a uint8 or float canvas, resized (bicubic a = -0.75, align_corners=True).

    It is not clipped: bicubic interpolation overshoots, slightly beyond [0, 1].
    """
    if canvas.dtype == jnp.uint8:
        canvas = canvas.astype(jnp.float32) / 255
    top, left, height, width = box
    rows = crop_matrix(top, height, canvas.shape[0], size)
    columns = crop_matrix(left, width, canvas.shape[1], size)
    return apply_matrices(canvas, rows, columns, VIEW_PRECISION)


def crop_and_flip(
    canvas: Shaped[Array, "Hc Wc 3"], box: Box, flip: Bool[Array, ""], size: int
) -> Float[Array, "size size 3"]:
    """The crop, clipped to [0, 1] and mirrored horizontally where `flip` is true."""
    image = jnp.clip(crop(canvas, box, size), 0, 1)
    return jnp.where(flip, image[:, ::-1], image)
