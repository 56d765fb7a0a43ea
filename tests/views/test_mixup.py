"""Mixup: blends and shares by hand, Beta's moments, and the same pairs in microbatches."""

import jax
import jax.numpy as jnp
import numpy as np

from sparse_vis.train.microbatches import split_batch
from sparse_vis.types import Batch
from sparse_vis.views import make
from sparse_vis.views.make import ViewSpec

make_views = jax.jit(make.make_views, static_argnames="spec")
SPEC = dict(size=12, patch_size=6, global_count=1, local_count=0, masking_ratio=0.5)


def batch(count):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3), np.uint8)
    side = jnp.full(count, 12)
    index = jnp.arange(100, 100 + count, dtype=jnp.uint32)
    return Batch(image=jnp.asarray(pixels), height=side, width=side, index=index, label=jnp.arange(count) - 1)


def test_a_blend_is_the_weighted_sum_of_two_images_half_a_batch_apart():
    key, images = jax.random.key(3), batch(8)
    alone = make_views(key, images, spec=ViewSpec(**SPEC))
    views = make_views(key, images, spec=ViewSpec(**SPEC, mixup=0.3))
    share, partner = np.asarray(views.share), [4, 5, 6, 7, 0, 1, 2, 3]
    assert views.label.tolist() == [-1, 0, 1, 2, 3, 4, 5, 6]
    assert views.other.tolist() == [3, 4, 5, 6, -1, 0, 1, 2]
    for i, j in enumerate(partner):
        expected = share[i] * alone.image[i] + (1 - share[i]) * alone.image[j]
        np.testing.assert_allclose(views.image[i], expected, atol=1e-6)
    np.testing.assert_array_equal(views.masked, alone.masked)  # the other draws are those without mixup
    assert alone.share is None and alone.other is None and len(set(share.tolist())) == 8


def test_shares_have_the_moments_of_beta():
    share = np.asarray(make_views(jax.random.key(0), batch(4000), spec=ViewSpec(**SPEC, mixup=0.5)).share)
    assert abs(share.mean() - 0.5) < 0.02 and abs(share.var() - 1 / 8) < 0.005  # of Beta(1/2, 1/2)


def test_microbatches_have_the_same_pairs_and_shares():
    key, images, spec = jax.random.key(1), batch(8), ViewSpec(**SPEC, mixup=0.3)
    whole = make_views(key, images, spec=spec)
    for number in (2, 4):
        parts = split_batch(images, number)
        for p in range(number):
            part = make_views(key, jax.tree.map(lambda x, p=p: x[p], parts), spec=spec)
            np.testing.assert_allclose(part.image, whole.image[p::number], atol=1e-6)
            np.testing.assert_array_equal(part.other, whole.other[p::number])
            np.testing.assert_array_equal(part.share, whole.share[p::number])
