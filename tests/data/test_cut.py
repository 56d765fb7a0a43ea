"""Cuts of images and label maps against torch's interpolation; the recorded ones are in test_published.py."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from sparse_vis.data.cut import Cut, centre_cut, labels_at, nearest

pytestmark = pytest.mark.fast
rng = np.random.default_rng(0)


def torch_resize(array, size, **how):
    """(H, W, ...) resized by torch, float."""
    x = torch.tensor(np.atleast_3d(array).astype(np.float32)).permute(2, 0, 1)[None]
    return interpolate(x, size, **how)[0].permute(1, 2, 0).numpy()


# The last: a box of one pixel, and a one-pixel row.
@pytest.mark.parametrize("box", [(0, 0, 37, 53), (3, 5, 20, 31), (30, 0, 7, 53), (8, 9, 1, 1), (5, 0, 1, 53)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_box_is_cut_out_first_then_resized(box, flip):
    image = rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)
    labels = rng.integers(0, 250, (37, 53), dtype=np.uint8)
    top, left, height, width = box
    inside = np.s_[top : top + height, left : left + width]
    cut, step = Cut(box, (24, 24), (0, 0), 24, flip), -1 if flip else 1
    expected = torch_resize(image[inside] / 255, (24, 24), mode="bicubic", align_corners=True)
    np.testing.assert_allclose(cut.image(image), np.clip(expected, 0, 1)[:, ::step], atol=1e-5)
    assert cut.image(image).dtype == np.float32
    expected = torch_resize(labels[inside], (24, 24), mode="nearest-exact")[..., 0]
    np.testing.assert_array_equal(cut.labels(labels), expected[:, ::step])
    assert cut.labels(labels).dtype == np.uint8


@pytest.mark.parametrize("shape", [(32, 32), (90, 121), (121, 90), (40, 51), (33, 99), (20, 600)])
def test_the_centre_after_a_resize_of_the_short_side(shape):
    """kornia rounds the long side down, and the offset; an image of the right short side is not resized."""
    image = rng.random((*shape, 3), dtype=np.float32)
    new = tuple(32 if side == min(shape) else side * 32 // min(shape) for side in shape)
    top, left = ((side - 28) // 2 for side in new)
    expected = torch_resize(image, new, mode="bicubic", align_corners=True)[top : top + 28, left : left + 28]
    found = centre_cut(*shape, 28, 32).image(image)
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=1e-5)
    if shape == (32, 32):
        np.testing.assert_array_equal(found, image[2:30, 2:30])


def test_nearest_is_torchs_at_every_size():
    for length in range(1, 120):
        pixels = torch.arange(length, dtype=torch.float32)[None, None, None]
        for resized in (1, 5, 7, 14, 16, 24, 37, length, 2 * length):
            for mode, centre in (("nearest", 0.0), ("nearest-exact", 0.5)):
                expected = interpolate(pixels, (1, resized), mode=mode).flatten().numpy()
                np.testing.assert_array_equal(nearest(length, resized, centre), expected)


def test_labels_at_the_logits():
    labels = rng.integers(0, 256, (2, 30, 47), dtype=np.uint8)
    expected = [torch_resize(one, (7, 5), mode="nearest")[..., 0] for one in labels]
    np.testing.assert_array_equal(labels_at(labels, (7, 5)), expected)
