"""Encoded bytes -> uint8 pixels -> canvas: all that happens to an image on the CPU."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps

from sparse_vis.errors import UserError

ORIENTATION = 0x0112  # EXIF tag; 1: upright


def decode(record: dict[str, Any], at_least: int = 0) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes the image of a record to RGB, upright (EXIF orientation applied).

    Args:
        record: `image` is a uint8 (H, W, 3) array, returned as it is, or the bytes of an image file;
            `name` (str) identifies it in the error.
        at_least: if not 0, a JPEG may be reduced while it is decoded, by a multiple of 1/8, as long as its
            longer side keeps this many pixels.

    Returns:
        uint8 (H, W, 3); transparent pixels lie on white, 16-bit grey keeps its upper 8 bits.

    Raises:
        UserError: the bytes are no image, or are damaged or cut short.
    """
    if isinstance(record["image"], np.ndarray):
        return record["image"]
    try:
        with Image.open(io.BytesIO(record["image"])) as image:
            if (
                image.format == "JPEG"
                and image.mode in ("RGB", "L")
                and image.getexif().get(ORIENTATION, 1) == 1
            ):
                return _decode_jpeg(record["image"], *image.size, at_least)
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):  # Pillow's own conversion saturates instead of scaling
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.has_transparency_data:  # under it drawings are mostly black, as are their lines
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image.convert("RGB"))
    except Image.UnidentifiedImageError:
        reason = "it is not an image"
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        reason = f"{type(error).__name__}: {error}"
    raise UserError(f"cannot decode {record['name']!r} ({reason}); repair or remove it")


def _decode_jpeg(data: bytes, width: int, height: int, at_least: int) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels that Pillow gives, in two thirds of its time; `at_least` as in `decode`."""
    longer = {"min_width" if width >= height else "min_height": at_least}
    return simplejpeg.decode_jpeg(data, **longer if 0 < at_least < max(width, height) else {})


def to_canvas(
    image: UInt8[np.ndarray, "H W 3"], size: int, *, min_side: int, name: str
) -> tuple[UInt8[np.ndarray, "size size 3"], int, int]:
    """Places an image at the top left of a square canvas; one that is larger is first reduced to fit.

    Args:
        image: uint8 (H, W, 3).
        size: side of the canvas in pixels.
        min_side: smallest side, in pixels, that the placed image may have: the patch size.
        name: identifies the image in the error.

    Returns:
        (canvas, height, width): uint8 (size, size, 3), zero outside the image's height x width.

    Raises:
        UserError: a side of the placed image is smaller than min_side.
    """
    height, width = image.shape[:2]
    # DEVIATION: the published code crops from the full image; here a larger one is first reduced (JPEG by
    # multiples of 1/8 as it is decoded, then bicubic, antialiased), so that batches have one shape and crops
    # can be cut on the accelerator.
    if max(height, width) > size:
        scale = size / max(height, width)
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    if min(height, width) < min_side:
        raise UserError(
            f"image {name!r} is {width}x{height} pixels on the {size}-pixel canvas, smaller than a patch of "
            f"{min_side}; remove it or use a smaller patch"
        )
    canvas = np.zeros((size, size, 3), np.uint8)
    canvas[:height, :width] = image
    return canvas, height, width


def to_square(
    image: UInt8[np.ndarray, "H W ..."], size: int, *, short_side: int, resample: Image.Resampling
) -> UInt8[np.ndarray, "size size ..."]:
    """Resizes the short side (antialiased unless nearest) and cuts the centre, as evaluations do.

    Args:
        image: uint8 (H, W, 3), or a (H, W) mask.
        size: side of the result in pixels.
        short_side: length of the short side after the resize, at least `size`.
        resample: Pillow's filter; NEAREST for masks.

    Returns:
        uint8 (size, size, ...).
    """
    height, width = image.shape[:2]
    if min(height, width) != short_side:
        scale = short_side / min(height, width)
        height, width = round(height * scale), round(width * scale)
        image = np.asarray(Image.fromarray(image).resize((width, height), resample))
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]
