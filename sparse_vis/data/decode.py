"""Encoded bytes -> uint8 pixels -> canvas or square: the image processing on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sparse_vis.data.image_file import MAX_PIXELS, read_pixels
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import quoted

LONGEST = 16  # `to_square` uses at most this many times the short side of the long side


def decode(record: dict[str, Any], at_least: int = 0) -> UInt8[np.ndarray, "H W 3"]:
    """Decode the image of a record to upright RGB (EXIF orientation applied), with the same pixels as Pillow.

    Args:
        record: `image` is a uint8 (H, W, 3) array, returned as it is, or the bytes of an image file, of which
            the first frame is read; `name` (str) identifies it in errors; `max_pixels`, if present, replaces
            MAX_PIXELS.
        at_least: if not 0, a JPEG may be downscaled while it is decoded, by a multiple of 1/8, as long as its
            longer side keeps this many pixels.

    Returns:
        uint8 (H, W, 3); transparent images are composited on white, 16-bit values keep their upper 8 bits.

    Raises:
        UserError: the bytes are no image, or are damaged or truncated; the image has more pixels than the
            limit (checked before decoding); its values have 32 bits, or 16 bits but would be nearly black in
            8 bits.
    """
    if missing := {"image", "name"} - record.keys():
        raise UserError(f"a record of the source has no {' and no '.join(sorted(missing))}; give it one")
    data, name = record["image"], quoted(record["name"])
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3:
            raise UserError(
                f"image {name} is a {data.dtype} array of shape {data.shape}; a source must give uint8 "
                "(H, W, 3), or the bytes of a file"
            )
        return data
    try:
        return read_pixels(data, at_least, record.get("max_pixels", MAX_PIXELS))
    except UserError as error:
        raise UserError(f"image {name} {error}") from None
    except Image.UnidentifiedImageError:
        reason = "it is not an image" if data else "it is empty"
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        reason = f"{type(error).__name__}: {error}"
    raise UserError(f"cannot decode {name} ({reason}); repair or remove it")


def to_canvas(
    image: UInt8[np.ndarray, "H W 3"], size: int, *, min_side: int
) -> tuple[UInt8[np.ndarray, "size size 3"], int, int]:
    """Place an image at the top left of a square canvas, resized (bicubic) if necessary.

    A larger image is downscaled to fit. An image with a side below `min_side` is upscaled until that side
    reaches it; if the other side would then exceed the canvas, the aspect ratio changes.

    Args:
        image: uint8 (H, W, 3).
        size: side of the canvas in pixels.
        min_side: smallest side, in pixels, of the placed image: the patch size, at most `size`.

    Returns:
        (canvas, height, width): uint8 (size, size, 3), zero outside the image's height x width.
    """
    # DEVIATION: the published code crops from the full image; here a larger image is first downscaled (JPEG
    # by multiples of 1/8 during decoding, then bicubic, antialiased), so that batches have one shape and
    # crops can be made on the accelerator.
    sides = image.shape[:2]
    scale = min(max(1, min_side / min(sides)), size / max(sides))
    height, width = (max(min_side, round(side * scale)) for side in sides)
    if (height, width) != sides:
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    canvas = np.zeros((size, size, 3), np.uint8)
    canvas[:height, :width] = image
    return canvas, height, width


def to_square(
    image: UInt8[np.ndarray, "H W ..."], size: int, *, short_side: int, resample: Image.Resampling
) -> UInt8[np.ndarray, "size size ..."]:
    """Resize the short side (antialiased unless NEAREST) and crop the centre, for evaluations.

    Of a very long image only the middle is resized, LONGEST times as long as the short side: the result needs
    no more, and the whole might not fit in memory.

    Args:
        image: uint8 (H, W, 3), or a (H, W) mask.
        size: side of the result in pixels.
        short_side: length of the short side after the resize, at least `size`.
        resample: Pillow's filter; NEAREST for masks.

    Returns:
        uint8 (size, size, ...).
    """
    height, width = image.shape[:2]
    top, left = (max(0, side - LONGEST * min(height, width)) // 2 for side in (height, width))
    image = image[top : height - top, left : width - left]
    height, width = image.shape[:2]
    if min(height, width) != short_side:
        scale = short_side / min(height, width)
        height, width = round(height * scale), round(width * scale)
        image = np.asarray(Image.fromarray(image).resize((width, height), resample))
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]
