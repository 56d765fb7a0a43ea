"""Encoded bytes -> uint8 pixels -> canvas: all that happens to an image on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sparse_vis.data.image_file import MAX_PIXELS, read_pixels
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import quoted

LONGEST = 16  # times the short side: what `to_square` looks at of the long one


def decode(record: dict[str, Any], at_least: int = 0) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes the image of a record to RGB, upright (EXIF orientation applied), with the pixels of Pillow.

    Args:
        record: `image` is a uint8 (H, W, 3) array, returned as it is, or the bytes of an image file, of which
            the first frame is read; `name` (str) identifies it in the error; `max_pixels`, where it is there,
            stands for MAX_PIXELS.
        at_least: if not 0, a JPEG may be reduced while it is decoded, by a multiple of 1/8, as long as its
            longer side keeps this many pixels.

    Returns:
        uint8 (H, W, 3); transparent pixels lie on white, of 16 bits the upper 8 are kept.

    Raises:
        UserError: the bytes are no image, or are damaged or cut short; there are more pixels than the limit,
            which is seen before they are decoded; the values are of 32 bits, or of 16 that would be nearly
            black in 8.
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
    """Places an image at the top left of a square canvas, resized (bicubic) where it must be.

    One that is larger is reduced to fit. One with a side below `min_side` is enlarged to it, in its own
    proportions as long as the other side fits on the canvas, and the short side alone from there on.

    Args:
        image: uint8 (H, W, 3).
        size: side of the canvas in pixels.
        min_side: smallest side, in pixels, of the placed image: the patch size, at most `size`.

    Returns:
        (canvas, height, width): uint8 (size, size, 3), zero outside the image's height x width.
    """
    # DEVIATION: the published code crops from the full image; here a larger one is first reduced (JPEG by
    # multiples of 1/8 as it is decoded, then bicubic, antialiased), so that batches have one shape and crops
    # can be cut on the accelerator.
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
    """Resizes the short side (antialiased unless nearest) and cuts the centre, as evaluations do.

    Of a very long image only the middle, LONGEST times as long as it is wide, is resized: no result needs
    more, and the whole might not fit in memory.

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
