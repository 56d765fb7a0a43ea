"""The contract between encoders and evaluations, and the encoders that need no model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from sparse_vis.data.records import in_batches
from sparse_vis.evals.dataset import Part
from sparse_vis.evals.encoders import mean_colour, patch_pca, raw_pixels
from sparse_vis.evals.features import Encoder, encode, pool, square_grid
from sparse_vis.evals.pixels.psnr_ssim import psnr
from sparse_vis.runtime.errors import UserError
from tests.evals.pictures import Pictures

pytestmark = pytest.mark.fast
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 4, 6, 3), dtype=np.uint8)


def toy(calls=None):
    """An encoder whose outputs are plain functions of each image; notes every shape it is compiled for."""

    @jax.jit
    def compute(images):
        if calls is not None:
            calls.append(images.shape)
        x = images.astype(jnp.float32)
        cls, sparse = x.mean(axis=(1, 2))[:, None], x.mean(axis=1).astype(jnp.bfloat16)
        return {"cls": cls, "sparse": sparse, "reconstruction": x / 255}

    return Encoder(
        "toy", ("cls", "sparse", "reconstruction"), lambda x, wanted: {k: compute(x)[k] for k in wanted}
    )


@pytest.mark.parametrize("batch_size", [1, 4, 11, 32])
def test_batches_change_nothing_and_compile_once(batch_size):
    calls = []
    encoder, wanted = toy(calls), ("cls", "sparse", "dense", "reconstruction")
    parts = [
        encode(encoder, IMAGES[start : start + batch_size], wanted, batch_size)
        for start in range(0, 11, batch_size)
    ]
    out = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    assert calls == [(batch_size, 4, 6, 3)]
    assert {key: (value.shape, value.dtype.name) for key, value in out.items()} == {
        "cls": ((11, 1, 3), "float32"),
        "sparse": ((11, 6, 3), "float32"),
        "reconstruction": ((11, 4, 6, 3), "float32"),
    }
    np.testing.assert_allclose(out["cls"][:, 0], IMAGES.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(out["reconstruction"], IMAGES / 255.0, rtol=1e-5)


def test_only_what_is_wanted_and_given_is_computed():
    asked = []

    def features(images, wanted):
        asked.append(wanted)
        return {"cls": images[:, :1, :, 0], "sparse": images[:, :2, :, 0]}

    encoder = Encoder("e", ("cls", "sparse"), features)
    assert set(encode(encoder, IMAGES, ("dense", "cls"), 11)) == {"cls"} and asked == [("cls",)]
    assert encode(encoder, IMAGES, ("dense",), 11) == {} and len(asked) == 1


def test_pool_is_the_mean_over_tokens():
    out = encode(toy(), IMAGES, ("cls", "sparse", "reconstruction"), 11)
    pooled = pool(out)
    assert set(pooled) == {"cls", "mean_S"}
    np.testing.assert_allclose(
        pooled["mean_S"], np.stack([tokens.sum(0) / 6 for tokens in out["sparse"]]), rtol=1e-6
    )
    np.testing.assert_array_equal(pooled["cls"], out["cls"][:, 0])


def test_raw_pixels_pool_to_the_flat_image():
    for images in (IMAGES, (IMAGES / 255).astype(np.float32)):
        pooled = pool(encode(raw_pixels(), images, ("dense",), 11))
        np.testing.assert_allclose(pooled["mean_U"], IMAGES.reshape(11, -1) / 255, atol=1e-6)


def test_mean_colour_is_the_best_constant():
    found = encode(mean_colour(), IMAGES, ("reconstruction",), 11)["reconstruction"]
    true = (IMAGES / 255).astype(np.float32)
    np.testing.assert_allclose(
        psnr(found, true), -10 * np.log10(true.var(axis=(1, 2)).mean(axis=-1)), rtol=1e-5
    )


@pytest.mark.parametrize("width", [5, 99])
def test_pca_of_patches_equals_sklearn(width):
    images = np.random.default_rng(1).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    images //= np.arange(1, 9, dtype=np.uint8)[:, None, None]  # so that directions differ
    part = Part(Pictures(images), np.arange(30), 8, 8, threads=1)
    found = encode(patch_pca(part, 4, width), images, ("dense",), 30)["dense"]
    rows = images.reshape(30, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(120, 48) / 255
    expected = PCA(min(width, 48)).fit_transform(rows).reshape(30, 4, -1)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)
    assert found.shape == (30, 4, min(width, 48))


def test_broken_contracts_are_named():
    def odd(key, value):
        return Encoder("odd", (key,), lambda images, wanted: value(images))

    with pytest.raises(UserError, match="'odd' returns the unknown key 'tokens'"):
        encode(odd("tokens", lambda x: {"tokens": x}), IMAGES, ("tokens",), 11)
    with pytest.raises(UserError, match=r"'odd' returned 'cls' of shape \(11, 3\)"):
        encode(odd("cls", lambda x: {"cls": x[:, 0, 0]}), IMAGES, ("cls",), 11)
    with pytest.raises(UserError, match="'odd' declares 'cls' but did not return it"):
        encode(odd("cls", lambda x: {}), IMAGES, ("cls",), 11)
    assert square_grid(49) == (7, 7)
    with pytest.raises(UserError, match="50 patches are not a square grid"):
        square_grid(50)


def test_batches_come_in_order_and_errors_arrive():
    def load(rows):
        if 7 in rows:
            raise UserError("record 7")
        return rows.tolist()

    assert list(in_batches(load, np.arange(7), 3, threads=2)) == [[0, 1, 2], [3, 4, 5], [6]]
    batches = in_batches(load, np.arange(20), 3, threads=2)
    assert next(batches) == [0, 1, 2]
    with pytest.raises(UserError, match="record 7"):
        list(batches)
