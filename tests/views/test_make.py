"""Crops and boxes against the recordings; views that depend on nothing but key and image index."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from sparse_vis.runtime.errors import UserError
from sparse_vis.types import Batch
from sparse_vis.views.crops import crop, sample_box
from sparse_vis.views.make import ViewSpec, make_views, sample_colour
from tests.golden_data import close, files

SIGMAS = 5
LEVELS = [0.05, 0.25, 0.5, 0.75, 0.95]
SPEC = ViewSpec(size=24, global_count=3, local_count=2, local_size=16, patch_size=8)
PLAIN = dataclasses.replace(
    SPEC, jitter_probability=0.0, grey_probability=0.0, blur_probability=0.0, flip_probability=0.0
)
# Always flipped and jittered, never grey; without local views.
FLIPPED = dataclasses.replace(
    SPEC, jitter_probability=1.0, grey_probability=0.0, flip_probability=1.0, local_count=0
)
views_of = jax.jit(make_views, static_argnums=2)
crop_of = jax.jit(crop, static_argnums=2)
box_of = jax.jit(sample_box, static_argnums=(3, 4))


@pytest.fixture(scope="module", params=files("views"), ids=lambda path: path.stem)
def recorded(request):
    return load_file(request.param)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 40, 48, 3), dtype=np.uint8)
    height, width = np.array([40, 30, 20, 40], np.int32), np.array([48, 33, 48, 12], np.int32)
    for canvas, h, w in zip(image, height, width, strict=True):
        canvas[h:], canvas[:, w:] = 0, 0
    return Batch(image, height, width, np.array([7, 2**32 - 1, 0, 12345], np.uint32))


@pytest.fixture(scope="module")
def views(batch):
    return views_of(jax.random.key(1), batch, SPEC)


@pytest.fixture(scope="module")
def plain(batch):
    return views_of(jax.random.key(1), batch, PLAIN)


def box_from_corners(corners):
    (left, top), (right, bottom) = corners[0].astype(int), corners[2].astype(int)
    return tuple(jnp.int32(v) for v in (top, left, bottom - top + 1, right - left + 1))


@pytest.mark.parametrize("name", ["global", "local"])
@pytest.mark.fast
def test_crops_match_the_recordings(recorded, name):
    image, size = recorded["image"][0], recorded[f"crop.{name}.raw"].shape[1]
    # What lies beyond the image must not be seen.
    canvas = np.pad(image, [(0, 12), (0, 6), (0, 0)], constant_values=9.0)
    for corners, raw in zip(recorded[f"crop.{name}.corners_xy"], recorded[f"crop.{name}.raw"], strict=True):
        close(crop_of(canvas, box_from_corners(corners), size), raw)


@pytest.mark.fast
def test_bytes_are_scaled_to_one():
    canvas = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    box = tuple(jnp.int32(v) for v in (2, 3, 5, 5))
    np.testing.assert_allclose(crop_of(canvas, box, 5), canvas[2:7, 3:8] / 255, atol=1e-6)


@pytest.mark.parametrize("name, scale", [("global", (0.36, 1.0)), ("local", (0.06, 0.36))])
@pytest.mark.fast
def test_boxes_are_distributed_as_recorded(recorded, name, scale):
    count, (height, width) = 20_000, recorded["image"].shape[1:3]
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.jit(
        jax.vmap(lambda key: sample_box(key, jnp.int32(height), jnp.int32(width), scale, (3 / 4, 4 / 3)))
    )
    top, left, h, w = (np.asarray(v) for v in draw(keys))
    assert min(top.min(), left.min()) >= 0 and (top + h).max() <= height and (left + w).max() <= width
    ours = {
        "area_fraction": h * w / (height * width),
        "aspect_w_over_h": w / h,
        "center_x": (left + (w - 1) / 2) / width,
        "center_y": (top + (h - 1) / 2) / height,
    }
    for what, values in ours.items():
        quantiles = recorded[f"crop.{name}.quantiles_5_25_50_75_95.{what}"].astype(float)
        for level, quantile in zip(LEVELS, quantiles, strict=True):
            error = SIGMAS * np.sqrt(2 * level * (1 - level) / count)
            # Boxes are integers, so a quantile is a step: the level lies between both sides of it.
            assert (
                (values < quantile - 1e-6).mean() - error
                <= level
                <= (values < quantile + 1e-6).mean() + error
            ), what


@pytest.mark.parametrize(
    "size, box", [((10, 100), (0, 43, 10, 13)), ((90, 9), (39, 0, 12, 9)), ((20, 1), (9, 0, 1, 1))]
)
@pytest.mark.fast
def test_where_nothing_fits_the_largest_centred_box_is_taken(size, box):
    drawn = box_of(jax.random.key(0), *map(jnp.int32, size), (0.99, 1.0), (3 / 4, 4 / 3))
    assert tuple(map(int, drawn)) == box


def test_shapes_types_and_ranges(views):
    assert views.image.shape == (4, 24, 24, 3)
    assert views.masked.shape == (4, 3, 24, 24, 3)
    assert views.local.shape == (4, 2, 16, 16, 3)
    assert views.visible.shape == (4, 3, 1) and views.visible.dtype == jnp.int32  # (1 - 0.8) * 9 patches
    for pixels in (views.image, views.masked, views.local):
        assert pixels.dtype == jnp.float32 and pixels.min() >= 0 and pixels.max() <= 1


def test_draws_do_not_depend_on_the_layout_of_the_batch(batch, views):
    order = np.array([2, 0, 3, 1])
    permuted = views_of(jax.random.key(1), jax.tree.map(lambda a: a[order], batch), SPEC)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b)[order]), permuted, views)
    # A batch of another size is another program: the same draws, a pixel differs by rounding, far below the
    # least step between two levels of 8 bits.
    part = views_of(jax.random.key(1), jax.tree.map(lambda a: a[1:2], batch), SPEC)
    np.testing.assert_array_equal(part.visible, views.visible[1:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.asarray(b)[1:2], atol=1e-3 / 255), part, views)


def test_another_key_gives_other_views(batch, views):
    other = views_of(jax.random.key(2), batch, SPEC)
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(views), strict=True):
        assert (np.asarray(a) != np.asarray(b)).any()


def test_canvas_beyond_the_image_is_never_read(batch, views):
    image = batch.image.copy()
    for canvas, h, w in zip(image, batch.height, batch.width, strict=True):
        canvas[h:], canvas[:, w:] = 255, 255
    noisy = views_of(jax.random.key(1), batch.replace(image=image), SPEC)
    jax.tree.map(np.testing.assert_array_equal, noisy, views)


def mirrored(images):
    return np.asarray(images)[..., ::-1, :]


def test_the_image_is_the_first_masked_view_without_colour(plain):
    np.testing.assert_array_equal(plain.masked[:, 0], plain.image)
    # The fourth image is so narrow that all its boxes may be the fallback.
    assert (np.asarray(plain.masked[:3, 1]) != np.asarray(plain.image[:3])).any((1, 2, 3)).all()


def test_colour_and_flips_leave_the_crop_alone(plain, views):
    same = (np.asarray(views.image) == np.asarray(plain.image)).all((1, 2, 3))
    turned = (np.asarray(views.image) == mirrored(plain.image)).all((1, 2, 3))
    assert (same ^ turned).all() and same.any() and turned.any()


def test_without_local_views(batch, plain, views):
    flipped = views_of(jax.random.key(1), batch, FLIPPED)
    assert flipped.local.shape == (4, 0, 16, 16, 3)
    np.testing.assert_array_equal(flipped.visible, views.visible)
    np.testing.assert_array_equal(flipped.image, mirrored(plain.image))


def test_every_view_has_its_own_colour(batch):
    full = Batch(
        np.full_like(batch.image, [200, 90, 40]),
        np.full(4, 40, np.int32),
        np.full(4, 48, np.int32),
        batch.index,
    )
    masked = np.asarray(views_of(jax.random.key(1), full, FLIPPED).masked)
    colours = masked[:, :, 0, 0].reshape(-1, 3)
    assert len(np.unique(colours.round(4), axis=0)) == len(colours)


def test_published_colour_is_one_draw_for_the_batch(batch):
    """On grey images the colour after jitter tells the draws: one for masked, another for local views."""
    white = Batch(np.full_like(batch.image, 200), *(np.full(4, 40, np.int32),) * 2, batch.index)
    spec = dataclasses.replace(SPEC, colour_per="batch", jitter_probability=1.0, grey_probability=0.0)
    views = views_of(jax.random.key(1), white, spec)
    masked, local = (np.asarray(part)[:, :, 0, 0].reshape(-1, 3) for part in (views.masked, views.local))
    np.testing.assert_allclose(masked, masked[:1].repeat(len(masked), 0), atol=1e-5)
    np.testing.assert_allclose(local, local[:1].repeat(len(local), 0), atol=1e-5)
    assert np.abs(masked[0] - local[0]).max() > 1e-3
    other = np.asarray(views_of(jax.random.key(2), white, spec).masked)[0, 0, 0, 0]
    assert np.abs(masked[0] - other).max() > 1e-3


@pytest.mark.fast
def test_colour_is_drawn_as_the_recipe_says():
    count = 20_000
    draw = jax.jit(jax.vmap(lambda key: sample_colour(key, ViewSpec())))
    colour = draw(jax.random.split(jax.random.key(5), count))
    for applied, rate in ((colour.jitter, 0.8), (colour.grey, 0.2), (colour.blur, 0.5)):
        assert abs(applied.mean() - rate) < SIGMAS * np.sqrt(rate * (1 - rate) / count)
    _, orders = np.unique(np.asarray(colour.order), axis=0, return_counts=True)
    assert len(orders) == 24 and np.abs(orders - count / 24).max() < SIGMAS * np.sqrt(count / 24)
    ranges = {0: (0.6, 1.4), 1: (0.6, 1.4), 2: (0.8, 1.2), 3: (-0.1, 0.1)}
    drawn = [(np.asarray(colour.strength)[:, i], *ends) for i, ends in ranges.items()] + [
        (np.asarray(colour.sigma), 0.1, 2.0)
    ]
    for values, low, high in drawn:
        part = (values - low) / (high - low)  # even on [0, 1]: mean 1/2, variance 1/12
        assert part.min() > -1e-6 and part.max() < 1 + 1e-6
        assert abs(part.mean() - 0.5) < SIGMAS / np.sqrt(12 * count)
        assert abs(part.var() - 1 / 12) < SIGMAS / np.sqrt(180 * count)


@pytest.mark.parametrize(
    "wrong, culprit",
    [
        ({"global_count": 0}, "global_count"),
        ({"size": 4, "patch_size": 4}, "size=4"),
        ({"local_size": 12}, "local_size=12"),
        ({"global_scale": (0.5, 1.5)}, "global_scale"),
        ({"aspect": (2.0, 1.0)}, "aspect"),
        ({"flip_probability": 1.5}, "flip_probability=1.5"),
        ({"mask_kind": "focal"}, "mask_kind='focal'"),
        ({"colour_per": "step"}, "colour_per='step'"),
        ({"masking_ratio": 1.0}, "masking_ratio=1 "),
    ],
)
@pytest.mark.fast
def test_wrong_settings_are_named(wrong, culprit):
    with pytest.raises(UserError, match=culprit):
        ViewSpec(**wrong)
