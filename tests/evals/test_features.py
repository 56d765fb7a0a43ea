"""The contract between encoders and evaluations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_vis.errors import UserError
from sparse_vis.evals.features import Encoder, extract_features, pool, raw_pixels

pytestmark = pytest.mark.fast
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 4, 6, 3), dtype=np.uint8)


def toy(shapes=None):
    """An encoder whose outputs are plain functions of each image; notes every shape it is compiled for."""

    @jax.jit
    def features(images):
        if shapes is not None:
            shapes.append(images.shape)
        x = images.astype(jnp.float32)
        return {
            "cls": x.mean(axis=(1, 2))[:, None],
            "sparse": x.mean(axis=1).astype(jnp.bfloat16),
            "reconstruction": x / 255,
        }

    return Encoder("toy", features)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 32])
def test_batches_change_nothing_and_compile_once(batch_size):
    shapes = []
    out = extract_features(toy(shapes), IMAGES, batch_size)
    assert shapes == [(batch_size, 4, 6, 3)]
    assert {key: (value.shape, value.dtype.name) for key, value in out.items()} == {
        "cls": ((11, 1, 3), "float32"),
        "sparse": ((11, 6, 3), "float32"),
        "reconstruction": ((11, 4, 6, 3), "float32"),
    }
    np.testing.assert_allclose(out["cls"][:, 0], IMAGES.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(out["reconstruction"], IMAGES / 255.0, rtol=1e-5)


def test_pool_is_the_mean_over_tokens():
    out = extract_features(toy(), IMAGES, 4)
    pooled = pool(out)
    assert set(pooled) == {"cls", "sparse"}
    np.testing.assert_allclose(
        pooled["sparse"], np.stack([tokens.sum(0) / 6 for tokens in out["sparse"]]), rtol=1e-6
    )
    np.testing.assert_array_equal(pooled["cls"], out["cls"][:, 0])


def test_pooling_each_batch_equals_pooling_the_whole():
    whole, parts = pool(extract_features(toy(), IMAGES, 4)), extract_features(toy(), IMAGES, 4, reduce=pool)
    assert set(whole) == set(parts)
    for key in whole:
        np.testing.assert_array_equal(whole[key], parts[key])


def test_raw_pixels_pool_to_the_flat_image():
    expected = {"dense"}
    for images in (IMAGES, (IMAGES / 255).astype(np.float32)):
        pooled = pool(extract_features(raw_pixels(), images, 4))
        assert set(pooled) == expected
        np.testing.assert_allclose(pooled["dense"], IMAGES.reshape(11, -1) / 255, atol=1e-6)


def test_broken_contracts_are_named():
    with pytest.raises(UserError, match="'odd' returned the unknown key 'tokens'"):
        extract_features(Encoder("odd", lambda x: {"tokens": x}), IMAGES, 4)
    with pytest.raises(UserError, match=r"'odd' returned 'cls' of shape \(4, 3\)"):
        extract_features(Encoder("odd", lambda x: {"cls": x[:, 0, 0]}), IMAGES, 4)
    with pytest.raises(UserError, match="no images"):
        extract_features(raw_pixels(), IMAGES[:0], 4)
    with pytest.raises(UserError, match="batch_size is 0"):
        extract_features(raw_pixels(), IMAGES, 0)
