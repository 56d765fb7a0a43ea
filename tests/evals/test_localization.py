"""Segments and their scores against scikit-learn, SciPy and plain loops."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from sklearn.metrics import adjusted_rand_score

from sparse_vis.evals.maps import localization as loc
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast


def masks(seed, count=9, size=(13, 17), instances=4, segments=6):
    """True masks, and predictions that agree with them partly."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, instances + 1, (count, *size))
    pred = np.where(rng.random(true.shape) < 0.5, true, rng.integers(0, segments, true.shape))
    return pred, true


def test_ari_equals_sklearn(monkeypatch):
    monkeypatch.setattr(loc, "BLOCK", 4)
    pred, true = masks(0)
    expected = [adjusted_rand_score(t[t > 0], p[t > 0]) for p, t in zip(pred, true, strict=True)]
    np.testing.assert_allclose(loc.foreground_ari(pred, true), expected, rtol=1e-12)
    assert np.std(expected) > 0


def test_ari_of_perfect_chance_and_single_segment():
    _, true = masks(1, count=3, size=(60, 60))
    assert loc.foreground_ari((true + 2) % 5, true) == pytest.approx(1)  # names of segments do not matter
    assert loc.foreground_ari(np.zeros_like(true), true) == pytest.approx(0)
    chance = np.random.default_rng(0).integers(0, 4, true.shape)
    assert np.abs(loc.foreground_ari(chance, true)).max() < 0.02


def test_ari_ignores_background_and_needs_two_instances():
    pred, true = masks(2, count=4)
    elsewhere = np.where(true > 0, pred, pred[:, ::-1])
    np.testing.assert_array_equal(loc.foreground_ari(pred, true), loc.foreground_ari(elsewhere, true))
    true[0], true[1] = 0, np.where(true[1] > 0, 3, 0)
    assert np.isnan(loc.foreground_ari(pred, true)).tolist() == [True, True, False, False]


def test_ari_of_single_pixels_is_one():
    true, pred = np.array([[[1, 2, 0]]]), np.array([[[4, 0, 0]]])
    assert loc.foreground_ari(pred, true)[0] == adjusted_rand_score([1, 2], [4, 0]) == 1


def test_best_iou_equals_the_loop():
    pred, true = masks(3)
    expected = []
    for p, t in zip(pred, true, strict=True):
        ious = [
            max(np.sum((p == s) & (t == i)) / np.sum((p == s) | (t == i)) for s in np.unique(p))
            for i in np.unique(t[t > 0])
        ]
        expected.append(np.mean(ious))
    np.testing.assert_allclose(loc.best_overlap(pred, true), expected, rtol=1e-12)


def test_best_iou_of_known_masks():
    true = np.zeros((3, 4, 4), int)
    true[0, :2], true[0, 2:] = 1, 7  # ids need not be contiguous
    true[1, :2, :2] = 1
    pred = np.zeros((3, 4, 4), int)
    pred[0, :2], pred[0, 2:] = 5, 2
    np.testing.assert_allclose(loc.best_overlap(pred, true), [1, 0.25, np.nan])
    assert loc.mean_best_overlap(pred, true) == pytest.approx(0.625)
    assert np.isnan(loc.mean_best_overlap(pred[2:], true[2:]))


def test_masks_may_be_of_any_integer_type():
    pred, true = masks(4)
    small = loc.best_overlap(pred.astype(np.uint8), true.astype(np.uint8))
    np.testing.assert_array_equal(small, loc.best_overlap(pred, true))


def test_segments_equal_an_independent_bilinear_argmax(monkeypatch):
    monkeypatch.setattr(loc, "BLOCK", 2)
    rng = np.random.default_rng(5)
    (gh, gw), (H, W), r = (3, 5), (24, 35), 4
    L = rng.dirichlet(np.ones(r), size=(3, gh * gw)).astype(np.float32)
    rows = (np.arange(H) + 0.5) * gh / H - 0.5
    columns = (np.arange(W) + 0.5) * gw / W - 0.5
    where = np.meshgrid(rows, columns, indexing="ij")
    planes = L.reshape(3, gh, gw, r).astype(np.float64)
    up = [
        [map_coordinates(image[..., k], where, order=1, mode="nearest") for k in range(r)] for image in planes
    ]
    np.testing.assert_array_equal(loc.token_segments(L, (gh, gw), (H, W)), np.argmax(up, axis=1))


def test_segments_on_the_patch_grid_are_the_argmax():
    L = np.random.default_rng(6).dirichlet(np.ones(5), size=(2, 12)).astype(np.float32)
    np.testing.assert_array_equal(loc.token_segments(L, (3, 4), (3, 4)), L.argmax(-1).reshape(2, 3, 4))


def test_bad_input_is_named():
    L = np.ones((1, 12, 2), np.float32) / 2
    with pytest.raises(UserError, match="12 patches but the grid 3x5"):
        loc.token_segments(L, (3, 5), (6, 10))
    pred, true = masks(7)
    with pytest.raises(UserError, match="true masks"):
        loc.foreground_ari(pred, true - 1)
