"""Decode the bytes of an image file to the RGB pixels that Pillow gives; refuse what Pillow gets wrong."""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import warnings

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, _imaging

from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import say_once

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # for some others Pillow starts external programs
MAX_PIXELS = 2**27  # of an image, unless its source sets another limit; 0.5 GiB in Pillow's memory
ORIENTATION = 0x0112  # EXIF tag; 1: upright
JPEG_PIXELS_PER_BYTE = 512  # upper bound: a block of 64 pixels needs at least one Huffman code of one bit
DARK = 16  # 8-bit level: a 16-bit image with all values below 16 * 256 = 4096 uses a 16th of its range
WIDE = re.compile(r"\b(I|L|LA|RGB|RGBA|RGBX|CMYK);16")  # Pillow's names for modes with 16 bits per channel
SEVERAL = "note: of image files with several frames or pages the first one is read"

# Pillow warns about metadata, which is not used, and about sizes, which are checked here.
warnings.filterwarnings("ignore", module=r"PIL\.")
# libtiff also writes to stderr the errors that Pillow raises.
with contextlib.suppress(OSError, AttributeError):  # if libtiff cannot be reached in this way
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def read_pixels(data: bytes, at_least: int, max_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    """Pixels of the first frame, upright; `at_least` and the result as in `decode`.

    Args:
        data: content of the file. at_least: in pixels; 0: full size.
        max_pixels: largest number of pixels that is decoded.

    Raises:
        UserError: the image cannot be shown in 8 bits or is too large; the sentence continues "image NAME".
        Exception: of nearly any type, from Pillow on damaged bytes.
    """
    with _open(data, max_pixels) as image:
        jpeg = image.format in ("JPEG", "MPO")  # MPO: several JPEGs in one file
        if jpeg and len(data) * JPEG_PIXELS_PER_BYTE < image.width * image.height:
            raise OSError(f"cut short: {len(data)} bytes hold no {image.width}x{image.height} pixels")
        if image.format == "JPEG" and image.mode in ("RGB", "L") and image.getexif().get(ORIENTATION, 1) == 1:
            # simplejpeg also fails on errors that Pillow tolerates; then Pillow decodes, below.
            with contextlib.suppress(ValueError):
                return _decode_jpeg(data, *image.size, at_least)
        pixels = _convert(image)
        with contextlib.suppress(Exception):  # a later frame may be damaged
            if not jpeg and image.is_animated:
                say_once(SEVERAL)
        return pixels


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The image, with only its header read; refuse one of too many pixels."""
    if 2 * (Image.MAX_IMAGE_PIXELS or max_pixels) < max_pixels:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's limit for the process; it raises at twice this number
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels = image.width * image.height
    except Image.DecompressionBombError as error:
        pixels = int(re.search(r"\d+", str(error))[0])
    if pixels > max_pixels:
        raise UserError(
            f"has {pixels:,} pixels, above the limit of {max_pixels:,}; reduce it, or raise "
            "--config.data.max_pixels (of a tool: --max-pixels)"
        )
    return image


def _decode_jpeg(data: bytes, width: int, height: int, at_least: int) -> UInt8[np.ndarray, "H W 3"]:
    """The same pixels as Pillow's, in two thirds of its time; `at_least` as in `decode`."""
    longer = {"min_width" if width >= height else "min_height": at_least}
    return simplejpeg.decode_jpeg(data, **longer if 0 < at_least < max(width, height) else {})


def _convert(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """RGB by Pillow's conversion; transparent images are composited on white.

    Raises:
        UserError: 8 bits per channel cannot show the image: 32-bit values, or 16-bit ones that are too dark.
    """
    wide = image.mode.startswith("I;16") or any(WIDE.search(str(tile.args)) for tile in image.tile)
    if image.mode in ("I", "F"):
        kind = "whole numbers" if image.mode == "I" else "floating-point numbers"
        raise UserError(
            f"has 32-bit {kind}, and a file does not say which is white; convert it to 8 bits, or remove it"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversion saturates instead of scaling
        values = np.asarray(image)
        if 0 < values.max() < DARK * 256:
            _refuse_dark(f"reach {values.max()}")
        image, wide = Image.fromarray((values >> 8).astype(np.uint8)), False
    if wide and max(high for _, high in image.convert("RGB").getextrema()) < DARK:
        _refuse_dark(f"stay below {DARK * 256}")
    if image.has_transparency_data:  # transparent pixels of drawings are mostly black, as their lines are
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _refuse_dark(found: str) -> None:
    raise UserError(
        f"has 16 bits, of 0 to 65535, but its values {found} only, so that it would be nearly black; convert "
        "it to 8 bits by its own range, or remove it"
    )
