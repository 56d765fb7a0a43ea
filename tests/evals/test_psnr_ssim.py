"""PSNR from its definition, SSIM against a float64 computation with SciPy's Gaussian filter."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from sparse_vis.evals.pixels import psnr_ssim as rec
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast


def pair(seed, shape=(3, 23, 30, 3), noise=0.1):
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.random(shape), (0, 3, 3, 0))
    x = (smooth - smooth.min()) / np.ptp(smooth)
    return x.astype(np.float32), np.clip(x + noise * rng.normal(size=shape), 0, 1).astype(np.float32)


def ssim_of_channel(x, y):
    """One channel in float64; truncate 3.5 makes the window 11 wide; only full windows count."""

    def mean(image):
        return gaussian_filter(image, 1.5, truncate=3.5)[5:-5, 5:-5]

    x, y = x.astype(np.float64), y.astype(np.float64)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean((x - 0.5) ** 2), mean((y - 0.5) ** 2), mean((x - 0.5) * (y - 0.5))
    vx, vy, cov = vx - (mx - 0.5) ** 2, vy - (my - 0.5) ** 2, cov - (mx - 0.5) * (my - 0.5)
    c1, c2 = 1e-4, 9e-4
    return np.mean((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))


def test_psnr_of_known_errors():
    x = np.full((4, 8, 8, 3), 0.5, np.float32)
    y = x.copy()
    y[0] += 0.1  # every value off by a tenth: 20 dB
    y[1, :, :, 0] += 0.1  # a third of the values
    y[2, 0, 0, 0] += 0.5  # one value of 192
    expected = [20, 20 + 10 * np.log10(3), -10 * np.log10(0.25 / 192), 100]
    np.testing.assert_allclose(rec.psnr(x, y), expected, atol=1e-4)


def test_mean_colour_is_the_best_constant():
    x, _ = pair(0)
    variance = ((x - x.mean(axis=(1, 2), keepdims=True)).astype(np.float64) ** 2).mean(axis=(1, 2, 3))
    mean = x.mean(axis=(1, 2), keepdims=True)
    best = rec.psnr(x, np.broadcast_to(mean, x.shape))
    np.testing.assert_allclose(best, -10 * np.log10(variance), atol=1e-4)
    assert (best > rec.psnr(x, np.broadcast_to(np.clip(mean + 0.01, 0, 1), x.shape))).all()


@pytest.mark.parametrize("shape", [(3, 23, 30, 3), (2, 11, 14, 1)])
def test_ssim_equals_scipy(shape):
    x, y = pair(1, shape)
    expected = [
        np.mean([ssim_of_channel(a[..., c], b[..., c]) for c in range(shape[-1])])
        for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(rec.ssim(x, y), expected, atol=2e-5)
    assert 0.05 < np.mean(expected) < 0.95


def test_ssim_is_one_for_equal_images_and_falls_with_noise():
    x, y = pair(2)
    np.testing.assert_allclose(rec.ssim(x, x), 1, atol=1e-6)
    _, worse = pair(2, noise=0.3)
    assert (rec.ssim(x, worse) < rec.ssim(x, y)).all()


def test_bad_input_is_named():
    x, y = pair(3)
    with pytest.raises(UserError, match="divide uint8 by 255"):
        rec.psnr(x * 255, y)
    y[0, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"lie in \[0, 1\]"):
        rec.ssim(x, y)
    with pytest.raises(UserError, match="at least 11 pixels per side, but these have 10x30"):
        rec.ssim(x[:, :10], x[:, :10])
