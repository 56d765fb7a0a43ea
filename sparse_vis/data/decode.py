"""On the host: the bytes of an image file -> the uint8 pixels that Pillow gives -> canvas or square."""

import contextlib
import ctypes
import functools
import io
import re
import warnings
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, _imaging

from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import quoted
from sparse_vis.runtime.progress import say_once
from sparse_vis.runtime.skipped import MAX_PIXELS

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # for some others Pillow starts external programs
ORIENTATION = 0x0112  # EXIF tag; 1: upright
JPEG_PIXELS_PER_BYTE = 512  # upper bound: a block of 64 pixels needs at least one Huffman code of one bit
DARK = 16  # a 16-bit image with all values below 16 * 256 would be nearly black in 8 bits
WIDE = re.compile(r"\b(I|L|LA|RGB|RGBA|RGBX|CMYK);16")  # Pillow's names for modes with 16 bits per channel
LONGEST = 16  # largest ratio of sides that `to_square` resizes; it first cuts longer images to it
BORDER = (124, 116, 104)  # of a letterboxed image: the mean colour of ImageNet, which the model maps to zero
SEVERAL = "note: some image files have several frames or pages; only the first is read"

# Pillow warns about metadata, which is not used, and about sizes, which are checked here.
warnings.filterwarnings("ignore", module=r"PIL\.")
# libtiff also writes to stderr the errors that Pillow raises.
with contextlib.suppress(OSError, AttributeError):  # if libtiff cannot be reached in this way
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def decode(record: dict[str, Any], at_least: int = 0) -> UInt8[np.ndarray, "H W 3"]:
    """Decode the image of a record to RGB, upright (EXIF orientation), with the same pixels as Pillow.

    Transparent images are composited on white; 16-bit values keep their upper 8 bits.

    Args:
        record: `image` is a uint8 (H, W, 3) array, returned as it is, or the bytes of an image file, of which
            the first frame is read; `name` (str) identifies it in errors; `max_pixels`, if present, replaces
            MAX_PIXELS.
        at_least: if not 0, a JPEG may be downscaled while it is decoded, by a multiple of 1/8, as long as its
            longer side keeps this many pixels.

    Raises:
        UserError: the bytes are not an image, are damaged or truncated; the image has more pixels than the
            limit (checked before decoding); its values have 32 bits, or have 16 bits and are so small that
            they would be nearly black in 8 bits.
    """
    if missing := {"image", "name"} - record.keys():
        raise UserError(f"a record of the source lacks {' and '.join(sorted(missing))}; add what is missing")
    data, name = record["image"], quoted(record["name"])
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3:
            raise UserError(
                f"image {name} is a {data.dtype} array of shape {data.shape}; a source must give uint8 "
                "(H, W, 3), or the bytes of a file"
            )
        return data
    try:
        return _read_pixels(data, at_least, record.get("max_pixels", MAX_PIXELS))
    except UserError as error:
        raise UserError(f"image {name} {error}") from None
    except Image.UnidentifiedImageError:
        reason = "it is not an image" if data else "it is empty"
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        reason = f"{type(error).__name__}: {error}"
    raise UserError(f"cannot decode {name} ({reason}); repair or remove it")


def _read_pixels(data: bytes, at_least: int, max_pixels: int) -> np.ndarray:
    """Pixels as `decode` returns them. Its UserErrors are ends of sentences, which begin with the name."""
    with _open(data, max_pixels) as image:
        jpeg = image.format in ("JPEG", "MPO")  # MPO: several JPEGs in one file
        width, height = image.size
        if jpeg and len(data) * JPEG_PIXELS_PER_BYTE < width * height:
            raise OSError(f"truncated: {len(data)} bytes are too few for {width}x{height} pixels")
        if image.format == "JPEG" and image.mode in ("RGB", "L") and image.getexif().get(ORIENTATION, 1) == 1:
            # simplejpeg takes two thirds of Pillow's time. It fails on some errors that Pillow tolerates:
            # then Pillow decodes, below.
            longer = {"min_width" if width >= height else "min_height": at_least}
            with contextlib.suppress(ValueError):
                return simplejpeg.decode_jpeg(data, **longer if 0 < at_least < max(width, height) else {})
        pixels = _convert(image)
        with contextlib.suppress(Exception):  # a later frame may be damaged
            if not jpeg and image.is_animated:
                say_once(SEVERAL)
        return pixels


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The image, of which only the header is read. Raises UserError if it has too many pixels."""
    if 2 * (Image.MAX_IMAGE_PIXELS or max_pixels) < max_pixels:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's limit for the process; it raises at twice this number
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels = image.width * image.height
    except Image.DecompressionBombError as error:
        pixels = int(re.search(r"\d+", str(error))[0])
    if pixels > max_pixels:
        raise UserError(
            f"has {pixels:,} pixels, more than the limit of {max_pixels:,}; shrink it, or raise "
            "--config.data.max_pixels (in other commands: --max-pixels)"
        )
    return image


def _convert(image: Image.Image) -> np.ndarray:
    """RGB by Pillow's conversion. Raises UserError for what 8 bits per channel cannot show."""
    wide = image.mode.startswith("I;16") or any(WIDE.search(str(tile.args)) for tile in image.tile)
    if image.mode in ("I", "F"):
        kind = "whole numbers" if image.mode == "I" else "floating-point numbers"
        raise UserError(
            f"has 32-bit {kind}, and does not say which value is white; convert it to 8 bits, or remove it"
        )
    image, found = ImageOps.exif_transpose(image), ""
    if image.mode.startswith("I;16"):  # Pillow's own conversion saturates instead of scaling
        values = np.asarray(image)
        found = f"reach {values.max()}" if 0 < values.max() < DARK * 256 else ""
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif wide and max(high for _, high in image.convert("RGB").getextrema()) < DARK:
        found = f"stay below {DARK * 256}"
    if found:
        raise UserError(
            f"has 16 bits (0 to 65535), but its values {found}, so it would be nearly black; convert it to "
            "8 bits with its own range, or remove it"
        )
    if image.has_transparency_data:  # transparent pixels of drawings are mostly black, as their lines are
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def to_canvas(
    image: UInt8[np.ndarray, "H W 3"], size: int, *, min_side: int
) -> tuple[UInt8[np.ndarray, "size size 3"], int, int]:
    """Place an image at the top left of a square canvas, resized (bicubic) if necessary.

    A larger image is downscaled to fit. An image with a side below `min_side` (the patch size) is upscaled
    until that side reaches it; if the other side would then exceed the canvas, the aspect ratio changes.

    Returns:
        (canvas, height, width): the canvas is zero outside the image's height x width.
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
    """Resize the short side of an image or mask (antialiased unless NEAREST) and crop the centre.

    Of a very long image only the middle, LONGEST times as long as the short side, is resized: the crop needs
    no more, and the whole might not fit into memory. `short_side` is at least `size`.
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


def fitted(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], *, letterbox: bool) -> np.ndarray:
    """An image resized (bicubic) to `size`, (height, width): uint8 (height, width, 3).

    It shows the largest centre crop of that aspect ratio, or with `letterbox` the whole image, in a border.
    """
    fit = functools.partial(ImageOps.pad, color=BORDER) if letterbox else ImageOps.fit
    return np.asarray(fit(Image.fromarray(image), size[::-1], method=Image.Resampling.BICUBIC))
