"""Image files against Pillow: every one has its pixels, or is refused with a sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

import sparse_vis.data.decode as image_file
from sparse_vis.data.decode import decode
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import say_once

# Pillow's remarks, which decode.py silences and pytest does not.
pytestmark = [pytest.mark.fast, pytest.mark.filterwarnings("ignore")]
NOISE = np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)
PHOTO = Image.fromarray(NOISE).resize((97, 61), reducing_gap=None).reduce(2).resize((97, 61))


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pillows(data):
    """What Pillow makes of a file, on white; None if it refuses it."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image.convert("RGB"))
    except Exception:
        return None


FILES = {
    "jpeg": encoded(PHOTO, "JPEG"),
    "progressive": encoded(PHOTO, "JPEG", progressive=True),
    "cmyk": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "png": encoded(PHOTO, "PNG"),
    "1 bit": encoded(PHOTO.convert("1"), "PNG"),
    "grey and alpha": encoded(Image.merge("LA", PHOTO.split()[:2]), "PNG"),
    "palette": encoded(PHOTO.convert("P"), "PNG", transparency=3),
    "one colour is transparent": encoded(PHOTO, "PNG", transparency=PHOTO.getpixel((0, 0))),
    "webp": encoded(PHOTO, "WEBP"),
    "bmp": encoded(PHOTO, "BMP"),
    "gif": encoded(PHOTO, "GIF", transparency=5),
    "tiff": encoded(PHOTO, "TIFF"),
    "tiff lzw": encoded(PHOTO, "TIFF", compression="tiff_lzw"),
    "tiff jpeg": encoded(PHOTO, "TIFF", compression="jpeg"),
    "tiff cmyk": encoded(PHOTO.convert("CMYK"), "TIFF"),
    "two frames": encoded(PHOTO, "GIF", save_all=True, append_images=[ImageOps.mirror(PHOTO)]),
    "two pages": encoded(PHOTO, "TIFF", save_all=True, append_images=[ImageOps.mirror(PHOTO)]),
}


@pytest.mark.parametrize("kind", FILES)
def test_whole_files_have_pillows_pixels(kind):
    expected = pillows(FILES[kind])
    assert expected.shape == (61, 97, 3)
    np.testing.assert_array_equal(decode({"image": FILES[kind], "name": "x"}), expected)


@pytest.mark.parametrize(
    "kind", ["jpeg", "progressive", "png", "webp", "bmp", "gif", "tiff lzw", "tiff jpeg"]
)
def test_damaged_files_have_pillows_pixels_or_are_refused(kind):
    rng, decoded, refused = np.random.default_rng(1), 0, 0
    for number in range(40):
        data = bytearray(FILES[kind])
        if number % 4 == 0:
            del data[rng.integers(len(data)) :]
        for place in rng.integers(len(data), size=number % 4) if data else ():
            data[place] ^= 1 << int(rng.integers(8))
        try:
            found = decode({"image": bytes(data), "name": "x"})
        except UserError as error:
            assert "'x'" in str(error) and "\n" not in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(found, pillows(data))
            decoded += 1
    assert refused >= 10 and (decoded >= 1 or kind == "png")  # each part of a PNG has a checksum


@pytest.mark.parametrize("form", ["jpeg", "progressive"])
def test_recoverable_faults_of_a_jpeg_are_passed_over_as_by_pillow(form):
    data = FILES[form]
    for faulty in (data[:-2] + bytes(65) + data[-2:], data + b"rest", data[:-2] + b"\xff\xd3" + data[-2:]):
        np.testing.assert_array_equal(decode({"image": faulty, "name": "x"}), pillows(faulty))
    faulty = data[:-2] + bytes(65) + data[-2:]  # in full, where a sound one is reduced
    np.testing.assert_array_equal(decode({"image": faulty, "name": "x"}, at_least=20), pillows(faulty))


def claims(kind, side):
    """A file whose header claims side x side pixels."""
    data, big = bytearray(FILES[kind]), struct.pack(">H", side)
    if kind == "jpeg":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = big + big
    elif kind == "png":
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "webp":
        place = data.index(b"\x9d\x01\x2a") + 3
        data[place : place + 4] = big[::-1] + big[::-1]
    else:
        data[18:26] = struct.pack("<ii", side, side)
    return bytes(data)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp"])
@pytest.mark.parametrize("side", [13000, 14000])  # Pillow alone refuses the second
def test_a_header_that_claims_too_much_is_refused_before_it_is_decoded(kind, side, monkeypatch):
    def decodes(*_):
        pytest.fail("it is decoded")

    monkeypatch.setattr(image_file, "_convert", decodes)
    monkeypatch.setattr(image_file.simplejpeg, "decode_jpeg", decodes)
    with pytest.raises(
        UserError, match=r"'x' has 1(69|96),000,000 pixels, more than .* 134,217,728; .*max_pixels"
    ):
        decode({"image": claims(kind, side), "name": "x"})


def test_the_limit_is_the_sources_and_may_be_above_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    record = {"image": FILES["png"], "name": "x"}
    with pytest.raises(UserError, match="5,917 pixels, more than the limit of 5,916"):
        decode(record | {"max_pixels": 61 * 97 - 1})
    np.testing.assert_array_equal(decode(record | {"max_pixels": 61 * 97}), np.asarray(PHOTO))


def test_a_jpeg_too_short_for_its_pixels_is_cut_short():
    with pytest.raises(UserError, match=r"'x' .*truncated: \d+ bytes are too few for 9000x9000 pixels"):
        decode({"image": claims("jpeg", 9000), "name": "x"})
    flat = Image.new("L", (800, 800))  # the least that a JPEG can spend
    for options in ({}, {"optimize": True}, {"progressive": True}):
        data = encoded(flat, "JPEG", quality=1, **options)
        np.testing.assert_array_equal(decode({"image": data, "name": "x"}), pillows(data))


def png16(values):
    """A PNG of 16 bits for each channel, RGB: Pillow writes none."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
    )
    chunks = (
        struct.pack(">I", len(x)) + n + x + struct.pack(">I", zlib.crc32(n + x))
        for n, x in (*parts, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_of_16_bits_the_upper_8_are_kept_unless_nothing_is_in_them():
    values = NOISE.astype(np.uint16) * 257
    grey = Image.fromarray(values[..., 0])
    for data in (encoded(grey, "PNG"), encoded(grey, "TIFF")):
        np.testing.assert_array_equal(decode({"image": data, "name": "x"}), NOISE[..., :1].repeat(3, -1))
    np.testing.assert_array_equal(decode({"image": png16(values), "name": "x"}), NOISE)
    dark = values // 16  # 12 bits, as of microscopes
    grey = Image.fromarray(dark[..., 0])
    for data in (encoded(grey, "PNG"), encoded(grey, "TIFF"), png16(dark)):
        with pytest.raises(UserError, match=r"^image 'x' has 16 bits.*40\d\d, so it.*convert it to 8 bits"):
            decode({"image": data, "name": "x"})
    black = encoded(Image.fromarray(np.zeros((5, 5), np.uint16)), "PNG")
    assert decode({"image": black, "name": "x"}).max() == 0


@pytest.mark.parametrize("dtype,kind", [(np.int32, "whole"), (np.float32, "floating-point")])
def test_32_bits_are_refused_with_the_remedy(dtype, kind):
    data = encoded(Image.fromarray(NOISE[..., 0].astype(dtype)), "TIFF")
    with pytest.raises(UserError, match=rf"^image 'x' has 32-bit {kind} numbers.*convert it to 8 bits"):
        decode({"image": data, "name": "x"})


def test_that_there_are_more_frames_is_said_once(capsys):
    say_once.cache_clear()
    for kind in ("gif", "tiff", "two frames", "two pages", "two frames"):
        decode({"image": FILES[kind], "name": "x"})
    assert capsys.readouterr().out == image_file.SEVERAL + "\n"


@pytest.mark.parametrize("image", [NOISE[..., 0], NOISE / 255, NOISE[..., :2], NOISE[None]])
def test_an_array_of_another_form_is_named(image):
    with pytest.raises(UserError, match=r"'x' is a \w+ array of shape .*uint8 \(H, W, 3\)"):
        decode({"image": image, "name": "x"})


def test_what_a_record_lacks_is_named():
    for record, name in (({"image": NOISE}, "name"), ({"name": "x"}, "image")):
        with pytest.raises(UserError, match=f"a record of the source lacks {name}; add"):
            decode(record)


def test_other_formats_are_no_images():
    """Pillow starts Ghostscript for this one, whatever the file is called."""
    with pytest.raises(UserError, match=r"'x\.jpg' \(it is not an image\)"):
        decode({"image": encoded(PHOTO, "EPS"), "name": "x.jpg"})
