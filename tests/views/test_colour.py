"""Colour operations against the recordings, colorsys and SciPy."""

import colorsys
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from sparse_vis.runtime.errors import UserError
from sparse_vis.views import colour as augment
from sparse_vis.views.make import ViewSpec
from tests.golden_data import close, component

pytestmark = pytest.mark.fast

RECORDED = component("views")
NEUTRAL = jnp.array([1.0, 1.0, 1.0, 0.0])
GREY = np.array([0.2989, 0.587, 0.114])


def colour_jitter(image, order, strength):
    return jnp.stack(augment._jitter((image[..., 0], image[..., 1], image[..., 2]), order, strength), axis=-1)


JITTER, BLUR = jax.jit(colour_jitter), jax.jit(augment.gaussian_blur)


def alone(operation):
    """The jitter with the other operations neutral, of one image or a batch, with one factor or one each."""
    order = jnp.array([*(set(range(4)) - {operation}), operation])

    @jax.jit
    def run(images, factor):
        strength = jax.vmap(NEUTRAL.at[operation].set)(jnp.broadcast_to(factor, images.shape[:-3]).ravel())
        batch = images.reshape(-1, *images.shape[-3:])
        return jax.vmap(colour_jitter, (0, None, 0))(batch, order, strength).reshape(images.shape)

    return run


BY_NUMBER = [alone(operation) for operation in range(4)]
BRIGHTNESS, CONTRAST, SATURATION, HUE = BY_NUMBER
BLENDS = {"brightness": BRIGHTNESS, "contrast": CONTRAST, "saturation": SATURATION}


@jax.jit
def recolour(image, jitter, grey, blur, order, strength, sigma):
    return augment.recolour(image, augment.Colour(jitter, grey, blur, order, strength, sigma))


def recorded_as(pattern):
    """Names of the recorded arrays that match; none where the folder has no views."""
    return [key for key in RECORDED if re.fullmatch(pattern, key)]


@pytest.fixture(scope="module")
def image():
    return jax.random.uniform(jax.random.key(0), (3, 16, 20, 3))


@pytest.mark.parametrize("key", recorded_as(r"colour\.(brightness|contrast|saturation)\..+"))
def test_blends_match_the_recordings(key):
    _, name, factor = key.split(".", 2)
    close(BLENDS[name](RECORDED["image"], float(factor)), RECORDED[key])


@pytest.mark.parametrize("key", recorded_as(r"colour\.hue\..+"))
def test_hue_matches_the_recordings(key):
    close(HUE(RECORDED["image"], float(key.removeprefix("colour.hue."))), RECORDED[key])


@pytest.mark.parametrize("key", recorded_as(r"colour\.blur9\.sigma.+"))
def test_blur_matches_the_recordings(key):
    close(BLUR(RECORDED["image"], float(key.removeprefix("colour.blur9.sigma"))), RECORDED[key])


@pytest.mark.parametrize("key", recorded_as(r"colour\.grey"))
def test_grey_matches_the_recordings(key):
    how = False, True, False, jnp.arange(4), NEUTRAL, 1.0
    close(jax.vmap(lambda image: recolour(image, *how))(RECORDED["image"]), RECORDED[key])


@pytest.mark.parametrize("key", recorded_as(r"colour\.\w+[\d.]+_.+"))
def test_jitter_chain_matches_the_recordings(key):
    chain = [(m[1], float(m[2])) for m in re.finditer(r"([a-z]+)(-?[\d.]+)", key.removeprefix("colour."))]
    number = {"brightness": augment.BRIGHTNESS, "contrast": augment.CONTRAST}
    number |= {"saturation": augment.SATURATION, "hue": augment.HUE}
    order = jnp.array([number[name] for name, _ in chain])
    strength = jnp.array([dict(chain)[name] for name in sorted(number, key=number.get)])
    apply = jax.jit(jax.vmap(colour_jitter, (0, None, None)))
    close(apply(RECORDED["image"], order, strength), RECORDED[key])


def test_jitter_follows_every_order(image):
    orders = jnp.array(list(itertools.permutations(range(4))))
    strength = jnp.array([1.35, 0.65, 1.2, 0.1])
    ours = jax.jit(jax.vmap(colour_jitter, (None, 0, None)))(image[0], orders, strength)
    for order, result in zip(orders.tolist(), ours, strict=True):
        expected = np.asarray(image[0], np.float64)
        for operation in order:
            expected = by_hand(expected, operation, float(strength[operation]))
        np.testing.assert_allclose(result, expected, atol=1e-5, err_msg=str(order))


def by_hand(image, operation, factor):
    """One operation in float64, the hue by colorsys."""
    if operation == augment.HUE:
        return turned(image.reshape(-1, 3), factor).reshape(image.shape)
    grey = image @ GREY
    base = (0.0, grey.mean(), grey[..., None])[operation]
    return np.clip(factor * image + (1 - factor) * base, 0, 1)


def turned(pixels, shift):
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in pixels]
    return np.array([colorsys.hsv_to_rgb((h + shift) % 1, s, v) for h, s, v in hsv])


@pytest.mark.parametrize("shift", [0.0, 0.05, -0.1, 1 / 3, 1.0])
def test_hue_agrees_with_colorsys(shift):
    primaries = list(itertools.product([0.0, 0.5, 1.0], repeat=3))  # greys and ties included
    pixels = np.concatenate([primaries, np.random.default_rng(0).uniform(size=(50, 3))])
    ours = HUE(jnp.asarray(pixels, jnp.float32)[None], shift)[0]
    np.testing.assert_allclose(ours, turned(pixels, shift), atol=2e-6)


@pytest.mark.parametrize("size", [(16, 16), (5, 9)])
def test_blur_of_tiny_views_agrees_with_scipy(size):
    image = np.random.default_rng(0).uniform(size=(*size, 3))
    expected = image
    for axis in (0, 1):
        expected = ndimage.gaussian_filter1d(expected, 1.7, axis=axis, mode="mirror", radius=4)
    np.testing.assert_allclose(BLUR(jnp.asarray(image, jnp.float32), 1.7), expected, atol=2e-6)


def test_views_that_the_blur_cannot_reflect_are_refused():
    with pytest.raises(UserError, match="5 px"):
        ViewSpec(size=4, patch_size=4)


@pytest.mark.parametrize("operation", [*BY_NUMBER, BLUR])
def test_one_factor_per_image(image, operation):
    factors = jnp.array([0.3, 1.1, 1.9])
    together = operation(image, factors)
    apart = jnp.stack([operation(one, float(f)) for one, f in zip(image, factors, strict=True)])
    np.testing.assert_allclose(together, apart, atol=2e-6)


@pytest.mark.parametrize("operation", BLENDS.values())
def test_results_are_clipped(image, operation):
    strong = np.asarray(operation(image, 3.0))
    assert strong.min() >= 0 and strong.max() == 1


def test_recolour_applies_what_it_is_told(image):
    image = image[0]
    on, off = True, False
    order, strength, sigma = jnp.arange(4), jnp.array([0.8, 1.2, 0.9, 0.05]), jnp.float32(1.5)

    def apply(jitter, grey, blur):
        return recolour(image, jitter, grey, blur, order, strength, sigma)

    def greyscale(image):
        return jnp.repeat((np.asarray(image) @ GREY)[..., None], 3, axis=-1).astype(jnp.float32)

    np.testing.assert_array_equal(apply(off, off, off), image)
    jittered = JITTER(image, order, strength)
    np.testing.assert_allclose(apply(on, off, off), jittered, atol=2e-6)
    np.testing.assert_allclose(apply(off, on, off), greyscale(image), atol=2e-6)
    np.testing.assert_allclose(apply(off, off, on), BLUR(image, sigma), atol=2e-6)
    chain = BLUR(greyscale(jittered), sigma)
    np.testing.assert_allclose(apply(on, on, on), chain, atol=2e-6)
