"""Fréchet distance against closed forms and SciPy's matrix square root; the rFID protocol against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.linalg import sqrtm
from scipy.stats import ortho_group

from sparse_vis.evals.pixels.fid import at_256, frechet_distance, to_uint8
from sparse_vis.evals.pixels.networks import Networks
from sparse_vis.ops.moments import Moments
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast


def moments(x, batch=7):
    found = Moments.empty(x.shape[1])
    for start in range(0, len(x), batch):
        found = found.update(x[start : start + batch])
    return found


def with_covariance(mean, covariance, count=40, seed=0):
    """Rows whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    q, _ = np.linalg.qr(x - x.mean(axis=0))
    return mean + q @ np.linalg.cholesky(covariance).T * np.sqrt(count - 1)


def test_streamed_moments_are_numpys():
    x = np.random.default_rng(0).normal(size=(50, 6)) @ np.diag([1, 2, 3, 1e-3, 5, 1]) + 1e4
    found = moments(x)
    assert found.count == 50
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.scatter / 49, np.cov(x, rowvar=False), rtol=1e-7, atol=1e-10)


def test_closed_form_of_commuting_covariances():
    rng = np.random.default_rng(1)
    basis = ortho_group.rvs(5, random_state=2)
    p, q = rng.uniform(0.1, 4, (2, 5))
    m, n = rng.normal(size=(2, 5))
    a = moments(with_covariance(m, basis * p @ basis.T, seed=3))
    b = moments(with_covariance(n, basis * q @ basis.T, seed=4))
    expected = np.sum((m - n) ** 2) + np.sum((np.sqrt(p) - np.sqrt(q)) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_general_covariances_match_scipy():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(60, 8)) @ rng.normal(size=(8, 8)), rng.normal(size=(90, 8)) + 0.3
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    step = x.mean(axis=0) - y.mean(axis=0)
    expected = step @ step + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(moments(y), moments(x)) == pytest.approx(expected, rel=1e-8)


def test_fewer_images_than_features():
    # Two sets in the same 3 of 64 dimensions: the distance is that of the 3, whatever surrounds them.
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(10, 3)), 2 * rng.normal(size=(12, 3)) + 1
    wide = ortho_group.rvs(64, random_state=7)[:3]
    inner = frechet_distance(moments(x), moments(y))
    assert frechet_distance(moments(x @ wide), moments(y @ wide)) == pytest.approx(inner, rel=1e-7)
    assert frechet_distance(moments(x @ wide), moments(x @ wide)) == pytest.approx(0, abs=1e-10)
    apart = frechet_distance(moments(x @ wide), moments(x @ wide + 0.5 * wide[0]))
    assert apart == pytest.approx(0.25, rel=1e-9)


def test_a_set_of_equal_images():
    x = np.random.default_rng(10).normal(size=(5, 3))
    same = moments(np.ones((2, 3)))
    expected = np.sum((x.mean(axis=0) - 1) ** 2) + x.var(axis=0, ddof=1).sum()
    assert frechet_distance(same, moments(x)) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(same, same) == 0


def test_protocol_crop_is_pillows():
    image = np.random.default_rng(8).integers(0, 256, (300, 451, 3), dtype=np.uint8)
    resized = Image.fromarray(image).resize((385, 256), Image.Resampling.BICUBIC)
    found = at_256([image, image[:256, :256]])
    np.testing.assert_array_equal(found[0], np.asarray(resized.crop((64, 0, 320, 256))))
    np.testing.assert_array_equal(found[1], image[:256, :256])
    np.testing.assert_array_equal(to_uint8(np.float32([-0.1, 0, 0.5019, 0.99, 1.2])), [0, 0, 128, 252, 255])


def test_moments_of_images(monkeypatch):
    rng = np.random.default_rng(9)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 30), (256, 256), (300, 280))]
    shapes = []

    def features(batch):
        shapes.append(batch.shape)
        return batch.mean(axis=(1, 2))

    networks = Networks("", "", "", 2)
    monkeypatch.setattr(networks, "_inception", features)
    found = Moments.empty(3).update(networks.inception(at_256(images)))
    expected = np.stack([at_256([image])[0].mean(axis=(0, 1)) for image in images])
    assert shapes == [(2, 256, 256, 3)] * 2 and found.count == 3
    np.testing.assert_allclose(found.mean, expected.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.scatter / 2, np.cov(expected, rowvar=False), rtol=1e-9)


def test_bad_input_is_refused():
    rows = np.zeros((3, 4))
    with pytest.raises(UserError, match="at least 2 images per set, but these have 3 and 1"):
        frechet_distance(moments(rows), moments(rows[:1]))
    with pytest.raises(UserError, match="4 and 3 features"):
        frechet_distance(moments(rows), moments(rows[:, :3]))
    with pytest.raises(UserError, match="not finite"):
        moments(np.full((2, 4), np.nan))
    with pytest.raises(UserError, match="at least 2 images per set, but these have 0 and 3"):
        frechet_distance(Moments.empty(4).update(rows[:0]), moments(rows))
