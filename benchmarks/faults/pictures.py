"""Damaged image files, through the one function that decodes for every command.

Pillow decodes the same bytes: what it refuses must be refused, and what is decoded must be its pixels.
"""

import io
import itertools
import random
import struct
import time
import warnings

import numpy as np
from PIL import Image, ImageOps

from benchmarks.faults.tally import Part
from sparse_vis.data.decode import decode

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
LONGEST = 5.0  # seconds for one picture of a few hundred pixels; a header must not make it more


def picture(kind: str, chance: random.Random) -> bytes:
    """A file of random smooth content and random size, from 1 px on."""
    size = chance.choice([(1, 1), (3, 40), (31, 17), (120, 80), (257, 190)])
    noise = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (5, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def flipped(data: bytes, chance: random.Random) -> bytes:
    at, found = chance.randrange(len(data)), bytearray(data)
    found[at] ^= 1 << chance.randrange(8)
    return bytes(found)


def huge(data: bytes, chance: random.Random) -> bytes:
    """Some two or four bytes of the header, where sizes are, hold a large number."""
    at, form = chance.randrange(min(len(data) - 4, 64)), chance.choice([">H", "<H", ">I", "<I"])
    number = struct.pack(form, 13000 if form[1] == "H" else 70000)
    return data[:at] + number + data[at + len(number) :]


def shuffled(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + chance.randbytes(min(16, len(data) - at)) + data[at + 16 :]


FAULTS = {
    "bit flipped": flipped,
    "cut": lambda data, chance: data[: chance.randrange(len(data))],
    "zeros": lambda data, chance: (
        data[:-2] + bytes(chance.randrange(1, 200)) + data[-2:]
    ),  # a JPEG ends with two bytes
    "huge": huge,
    "random bytes": shuffled,
}


def is_pillows(pixels: np.ndarray, data: bytes) -> bool:
    """Whether Pillow alone reads the file and gives these pixels, transparent ones over white."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            image = ImageOps.exif_transpose(image)
            rgba = np.asarray(image.convert("RGBA"), np.float64)
    except Exception:  # Pillow raises nearly anything on damaged bytes
        return False
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    return pixels.shape == expected.shape and bool(np.abs(pixels - expected).max() <= 1)


def campaign(part: Part) -> None:
    """Damage ten pictures of every format in every way."""
    for kind, (name, fault) in itertools.product(FORMATS, FAULTS.items()):
        for number in part.times(10):
            data = fault(picture(kind, part.chance), part.chance)
            begun = time.monotonic()
            part.tally.judge(
                f"pictures, {kind}", f"{name} {number}",
                lambda data=data: decode({"image": data, "name": "p"}),
                lambda found, data=data: is_pillows(found, data),
            )  # fmt: skip
            if (seconds := time.monotonic() - begun) > LONGEST:
                part.tally.fail(f"pictures, {kind}", f"{name} {number}: takes {seconds:.0f} s")
