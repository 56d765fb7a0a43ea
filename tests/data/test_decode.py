import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from sparse_vis.data.decode import decode, to_canvas, to_square
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast


def encoded(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("form,options", [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_files_decode_exactly(form, options):
    pixels = noise(13, 29)
    np.testing.assert_array_equal(decode({"image": encoded(pixels, form, **options), "name": "a"}), pixels)


def photograph(height, width):
    """A photograph of scikit-learn's, in another size."""
    image = Image.fromarray(load_sample_images().images[0])
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("pixels", [photograph(375, 500), photograph(61, 47), photograph(64, 80)[..., 0]])
@pytest.mark.parametrize(
    "options", [{"quality": 90}, {"quality": 60, "progressive": True}, {"subsampling": 0}]
)
def test_jpegs_are_pillows_pixels(pixels, options):
    data = encoded(pixels, "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode({"image": data, "name": "a"}), expected)


@pytest.mark.parametrize("shape", [(750, 1000), (1000, 750), (130, 2000), (1500, 2000)])
def test_a_large_jpeg_is_reduced_while_decoded_and_looks_the_same(shape):
    """Reduced to twice the canvas at least, as the loader asks, it is within 39 dB of decoding in full."""
    record = {"image": encoded(photograph(*shape), "JPEG", quality=90), "name": "a"}
    reduced, full = decode(record, at_least=512), decode(record)
    assert full.shape[:2] == shape and 512 <= max(reduced.shape) <= 512 + max(shape) / 8
    (ours, *size), (theirs, *whole) = (to_canvas(x, 256, min_side=16) for x in (reduced, full))
    assert size == whole and max(size) == 256
    difference = (ours.astype(float) - theirs)[: size[0], : size[1]]
    assert 10 * np.log10(255**2 / np.mean(difference**2)) > 39


def test_small_jpegs_are_not_reduced():
    record = {"image": encoded(photograph(375, 500), "JPEG"), "name": "a"}
    for at_least in (500, 512):
        np.testing.assert_array_equal(decode(record, at_least=at_least), decode(record))


def test_exif_orientation_turns_the_image_upright():
    pixels = noise(8, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn counter-clockwise
    found = decode({"image": encoded(pixels, exif=exif), "name": "a"})
    np.testing.assert_array_equal(found, np.rot90(pixels, -1))


def test_grey_palette_alpha_and_16_bit_become_rgb():
    grey = noise(6, 6)[..., 0]
    expected = np.repeat(grey[..., None], 3, -1)
    deep = grey.astype(np.uint16) * 256 + 77
    buffer = io.BytesIO()
    Image.fromarray(grey).convert("P").save(buffer, "PNG")
    alpha = np.dstack([expected, np.full_like(grey, 255)])
    for data in (encoded(grey), encoded(deep), buffer.getvalue(), encoded(alpha)):
        np.testing.assert_array_equal(decode({"image": data, "name": "a"}), expected)


def test_transparent_pixels_lie_on_white():
    colours, opacity = noise(9, 7), noise(9, 7, seed=1)[..., 0]
    opacity[0], opacity[1] = 0, 255
    found = decode({"image": encoded(np.dstack([colours, opacity])), "name": "a"})
    share = opacity[..., None] / 255
    np.testing.assert_allclose(found, share * colours + (1 - share) * 255, atol=1)
    assert (found[0] == 255).all() and (found[1] == colours[1]).all()


def test_transparent_palette_entries_are_white():
    buffer = io.BytesIO()
    drawing = Image.fromarray(np.eye(5, dtype=np.uint8), mode="P")
    drawing.putpalette([0, 0, 0, 200, 10, 30])
    drawing.save(buffer, "PNG", transparency=0)
    found = decode({"image": buffer.getvalue(), "name": "a"})
    np.testing.assert_array_equal(found[0, 0], [200, 10, 30])
    np.testing.assert_array_equal(found[0, 1], [255, 255, 255])


def test_arrays_pass_through():
    pixels = noise(4, 5)
    np.testing.assert_array_equal(decode({"image": pixels, "name": "a"}), pixels)


@pytest.mark.parametrize("form,options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {})])
@pytest.mark.parametrize("lost", [2, 200, "half"])
def test_truncated_files_raise_and_are_named(form, options, lost):
    data = encoded(noise(60, 80), form, **options)
    data = data[: len(data) // 2] if lost == "half" else data[:-lost]
    with pytest.raises(UserError, match=r"'cat/x\.jpg'"):
        decode({"image": data, "name": "cat/x.jpg"})


@pytest.mark.parametrize("data", [b"", b"hello", encoded(noise(60, 80))[:-3000]])
def test_other_damage_is_one_sentence(data):
    with pytest.raises(UserError, match=r"^cannot decode 'x\.png' .*repair or remove it$") as error:
        decode({"image": data, "name": "x.png"})
    assert "0x" not in str(error.value)


def test_canvas_keeps_small_images_at_the_top_left():
    pixels = noise(20, 30)
    canvas, height, width = to_canvas(pixels, 32, min_side=16)
    assert (height, width) == (20, 30) and canvas.shape == (32, 32, 3) and canvas.dtype == np.uint8
    np.testing.assert_array_equal(canvas[:20, :30], pixels)
    assert canvas[20:].max() == 0 and canvas[:, 30:].max() == 0


def test_canvas_reduces_large_images_without_aliasing():
    board = (np.indices((128, 64)).sum(0) % 2 * 255).astype(np.uint8)
    canvas, height, width = to_canvas(np.repeat(board[..., None], 3, -1), 32, min_side=16)
    assert (height, width) == (32, 16)
    # Every target pixel covers as many black as white ones; picking samples would give 0 and 255.
    assert np.abs(canvas[2:30, 2:14].astype(int) - 127).max() <= 2


@pytest.mark.parametrize(
    "shape,expected",
    [
        ((7, 39), (16, 89)),  # 39 * 16 / 7 = 89.1
        ((39, 7), (89, 16)),
        ((1, 1), (16, 16)),
        ((16, 40), (16, 40)),
        ((15, 600), (16, 512)),  # no room to grow in its proportions
        ((3, 5000), (16, 512)),
        ((320, 2000), (82, 512)),
    ],
)
def test_sides_below_a_patch_are_enlarged_to_it_in_proportion_where_there_is_room(shape, expected):
    pixels = noise(*shape)
    canvas, height, width = to_canvas(pixels, 512, min_side=16)
    assert (height, width) == expected
    resized = Image.fromarray(pixels).resize(expected[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(canvas[:height, :width], np.asarray(resized))


@pytest.mark.parametrize("shape", [(1, 1), (7, 39), (3, 5000), (5000, 3)])
def test_any_shape_becomes_a_square(shape):
    pixels = np.full((*shape, 3), 77, np.uint8)
    found = to_square(pixels, 224, short_side=256, resample=Image.Resampling.BICUBIC)
    assert found.shape == (224, 224, 3) and (found == 77).all()


def test_of_a_very_long_image_only_the_middle_is_resized():
    pixels = np.zeros((2, 3_000_000, 3), np.uint8)  # resized whole, it would have 295 GB
    pixels[:, 1_500_000:] = 255
    found = to_square(pixels, 224, short_side=256, resample=Image.Resampling.BICUBIC).astype(int)
    assert found[:, :40].max() == 0 and found[:, -40:].min() == 255  # black and white meet in the middle
    np.testing.assert_allclose(found + found[:, ::-1], 255, atol=1)


def test_square_cuts_the_centre():
    pixels = noise(10, 16)
    found = to_square(pixels, 8, short_side=10, resample=Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, pixels[1:9, 4:12])
    mask = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3), 4, 0), 4, 1)
    found = to_square(mask, 2, short_side=2, resample=Image.Resampling.NEAREST)
    np.testing.assert_array_equal(found, [[0, 1], [3, 4]])
