"""Random resized crops out of a canvas, with traced boxes and static output sizes (method.md section 6)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from sparse_vis.ops.resize import VIEW_PRECISION, apply_matrices, crop_matrix

Box = tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""], Int[Array, ""]]  # top, left, height, width
BOX_DRAWS = 10


def sample_box(
    key: PRNGKeyArray,
    height: Int[Array, ""],
    width: Int[Array, ""],
    scale: tuple[float, float] | Float[Array, " 2"],
    aspect: tuple[float, float],
) -> Box:
    """Random box of a random resized crop: the first of ten draws that fits, else the largest centred box.

    Args:
        key: random key.
        height, width: () int32, pixels of the image.
        scale: range of the part of the area, drawn evenly; may be traced.
        aspect: range of width / height, drawn evenly on a logarithmic scale.

    Returns:
        top, left, height and width of the box, () int32 each.
    """
    # One draw serves the whole box: on CPU every further one costs half a second of compilation.
    uniform = jax.random.uniform(key, (2 * BOX_DRAWS + 2,), jnp.float32)
    area = (scale[0] + (scale[1] - scale[0]) * uniform[:BOX_DRAWS]) * (height * width)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = jnp.exp(low + (high - low) * uniform[BOX_DRAWS:-2])
    widths = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
    heights = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first, found = jnp.argmax(fits), jnp.any(fits)

    largest_height = jnp.clip(jnp.round(width / aspect[0]).astype(jnp.int32), 1, height)
    largest_width = jnp.clip(jnp.round(height * aspect[1]).astype(jnp.int32), 1, width)
    box_height = jnp.where(found, heights[first], largest_height)
    box_width = jnp.where(found, widths[first], largest_width)
    spare_height, spare_width = height - box_height, width - box_width
    top = jnp.where(found, jnp.floor(uniform[-2] * (spare_height + 1)).astype(jnp.int32), spare_height // 2)
    left = jnp.where(found, jnp.floor(uniform[-1] * (spare_width + 1)).astype(jnp.int32), spare_width // 2)
    return top, left, box_height, box_width


def crop(canvas: Shaped[Array, "Hc Wc 3"], box: Box, size: int) -> Float[Array, "size size 3"]:
    """The box, cut out and resized (bicubic a = -0.75, align_corners=True); not clipped.

    Args:
        canvas: (Hc, Wc, 3) uint8, or float32 in [0, 1].
        box: top, left, height and width, () int32 each, inside the image.
        size: pixels a side of the result.

    Returns:
        (size, size, 3) float32, about [0, 1]: bicubic interpolation overshoots.
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
    """The crop, clipped to [0, 1] and mirrored horizontally where `flip` is true; Args as in `crop`."""
    image = jnp.clip(crop(canvas, box, size), 0, 1)
    return jnp.where(flip, image[:, ::-1], image)
