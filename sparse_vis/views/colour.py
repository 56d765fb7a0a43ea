"""Colour operations on float32 RGB in [0, 1]; each clips its result to [0, 1] (docs/method.md section 6).

Brightness, contrast and saturation are the same blend, factor * colour + (1 - factor) * base. The base is
black, the image's mean grey, or each pixel's own grey. The arithmetic runs on three separate colour planes:
with interleaved channels, CPUs cannot vectorise it and XLA computes shared parts once per channel.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sparse_vis.ops.resize import VIEW_PRECISION, apply_matrices

Image = Float[Array, "*batch H W 3"]
Plane = Float[Array, "*batch H W"]
Planes = tuple[Plane, Plane, Plane]

GREY_WEIGHTS = (0.2989, 0.587, 0.114)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
BLUR_RADIUS = 4  # 9 taps


@struct.dataclass
class Colour:
    """The colour change of one view."""

    jitter: jax.Array  # bool; this and the next two: whether to apply it
    grey: jax.Array
    blur: jax.Array
    order: jax.Array  # of the jitter: a permutation of BRIGHTNESS, CONTRAST, SATURATION, HUE
    # Of each of these operations: three factors (1 changes nothing; 0 gives black, the mean grey of the
    # image, the grey of each pixel) and the shift of the hue (1 is the full circle).
    strength: jax.Array
    sigma: jax.Array  # of the blur, in pixels


def _where(condition: Bool[Array, ""], chosen: Planes, other: Planes) -> Planes:
    return tuple(jnp.where(condition, a, b) for a, b in zip(chosen, other, strict=True))


def _grey(planes: Planes) -> Plane:
    return sum(weight * plane for weight, plane in zip(GREY_WEIGHTS, planes, strict=True))


def _blend(planes: Planes, base: float | Array, factor: Array) -> Planes:
    return tuple(jnp.clip(factor * plane + (1 - factor) * base, 0, 1) for plane in planes)


def _turn_hue(planes: Planes, shift: Array) -> Planes:
    """Rotate the hue (HSV) by a share of the circle. Source: Smith, "Color gamut transform pairs", 1978."""
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1.0)  # grey pixels have no hue and keep their colour
    green_or_blue = jnp.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    sextant = jnp.where(value == red, (green - blue) / divisor, green_or_blue) + 6 * shift

    def channel(position: int) -> Plane:
        k = (sextant + position) / 6
        k = 6 * (k - jnp.floor(k))  # jnp.mod is many times slower on CPU
        return jnp.clip(value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1), 0, 1)

    return channel(5), channel(3), channel(1)


def _blur_matrix(size: int, sigma: Float[Array, "*batch"]) -> Float[Array, "*batch size size"]:
    """Matrix with Gaussian taps on its diagonals; taps beyond the border are reflected inside."""
    distance = jnp.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, dtype=jnp.int32)
    taps = jnp.exp(-0.5 * (distance / sigma[..., None]) ** 2)
    # Without the barrier XLA tries to fuse the taps into each of nine terms: 80 s of compilation for a GPU.
    taps = jax.lax.optimization_barrier(taps / taps.sum(-1, keepdims=True))[..., None, None]
    pixels = jnp.arange(size, dtype=jnp.int32)
    source = jnp.abs(pixels + distance[:, None])
    source = (size - 1) - jnp.abs((size - 1) - source)
    return sum(taps[..., k, :, :] * (source[k][:, None] == pixels) for k in range(len(distance)))


def gaussian_blur(image: Image, sigma: float | Float[Array, "*#batch"]) -> Image:
    """Gaussian blur, 9 x 9 taps, the border reflected without repeating the edge; sigma > 0 in pixels."""
    height, width = image.shape[-3:-1]
    # Two matrices instead of sums of shifted images, into which XLA would fuse the operations before them and
    # recompute these for every tap: six times slower on CPU.
    sigma = jnp.asarray(sigma, jnp.float32)
    rows, columns = _blur_matrix(height, sigma), _blur_matrix(width, sigma)
    return jnp.clip(apply_matrices(image, rows, columns, VIEW_PRECISION), 0, 1)


def _jitter(planes: Planes, order: Int[Array, " 4"], strength: Float[Array, " 4"]) -> Planes:
    """Brightness, contrast, saturation and hue of one image; order and strength are those of Colour."""

    def turn(planes: Planes, operation_and_factor):
        (operation, factor), grey = operation_and_factor, _grey(planes)
        base = jnp.where(operation == SATURATION, grey, 0.0)
        base = jnp.where(operation == CONTRAST, grey.mean(axis=(-2, -1), keepdims=True), base)
        return _where(operation == HUE, _turn_hue(planes, factor), _blend(planes, base, factor)), None

    # Under vmap, lax.switch would run all four operations at every turn; choosing the base instead leaves one
    # blend and one hue rotation. A scan, because XLA would fuse unrolled turns and recompute earlier ones.
    return jax.lax.scan(turn, planes, (order, strength[order]))[0]


def recolour(image: Float[Array, "H W 3"], colour: Colour) -> Float[Array, "H W 3"]:
    """Jitter, then greyscale, then blur of one image, each only if `colour` enables it."""
    planes = image[..., 0], image[..., 1], image[..., 2]
    planes = _where(colour.jitter, _jitter(planes, colour.order, colour.strength), planes)
    grey = jnp.clip(_grey(planes), 0, 1)
    image = jnp.stack(_where(colour.grey, (grey, grey, grey), planes), axis=-1)
    return jnp.where(colour.blur, gaussian_blur(image, colour.sigma), image)
