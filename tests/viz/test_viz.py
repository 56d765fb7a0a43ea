"""Pictures and figures on hand-made arrays, where every pixel is known."""

import json

import matplotlib.figure
import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA

from sparse_vis.runtime.errors import UserError
from sparse_vis.viz import figures as viz
from sparse_vis.viz import overlays

pytestmark = pytest.mark.fast

GRID = (2, 3)  # not square, so that rows and columns cannot be confused
P = 4  # pixels of a patch
rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (4, GRID[0] * P, GRID[1] * P, 3), dtype=np.uint8)
# Token 2 has the first row of patches, token 0 the rest.
HARD = np.float32([[0.1, 0.2, 0.7]] * 3 + [[0.8, 0.1, 0.1]] * 3)


def shown(figure, row, column, columns):
    return np.asarray(figure.axes[row * columns + column].images[0].get_array())


def test_colours_are_distinct_and_the_same_each_time():
    colours = overlays.token_colours(16)
    assert len({tuple(c) for c in np.round(colours, 3)}) == 16
    np.testing.assert_array_equal(colours, overlays.token_colours(16))


LINEAR_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
# How colours look without one kind of cone: Machado et al. 2009, severity 1, on linear RGB.
SEEN = {
    "by most people": np.eye(3),
    "without red cones": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "without green cones": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
}


@pytest.mark.parametrize("seen", SEEN)
def test_every_two_of_sixteen_colours_are_told_apart(seen):
    colours = overlays.token_colours(16)
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ np.transpose(SEEN[seen]), 0, 1) @ LINEAR_TO_XYZ.T / (0.9505, 1, 1.089)
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    assert pdist(lab).min() > 20  # 2.3 is the smallest difference that people notice


def test_colours_are_the_same_for_any_number_of_tokens_and_go_on():
    np.testing.assert_array_equal(overlays.token_colours(3), overlays.token_colours(16)[:3])
    many = overlays.token_colours(40)
    np.testing.assert_array_equal(many[:16], overlays.token_colours(16))
    assert many.shape == (40, 3) and len({tuple(c) for c in np.round(many, 3)}) == 40


def test_segments_are_the_largest_token_of_every_patch():
    np.testing.assert_array_equal(overlays.segments(HARD, GRID), [[2, 2, 2], [0, 0, 0]])
    overlay = overlays.segment_overlay(HARD, GRID)
    assert overlay.shape == (2, 3, 4) and (overlay[..., 3] == 153).all()  # 60 %
    np.testing.assert_array_equal(overlay[0, 1, :3], np.round(255 * overlays.token_colours(3)[2]))


def test_a_map_is_tinted_where_largest_and_dark_where_nothing():
    overlay = overlays.token_overlay(np.float32([[1, 0], [0.5, 0.5], [0, 1]]), 0, (3, 1))[:, 0]
    first = tuple(np.uint8(np.round(255 * overlays.token_colours(1)[0])))
    tint, shade = round(255 * overlays.TINT), round(255 * overlays.SHADE)
    assert tuple(overlay[0]) == (*first, tint) and tuple(overlay[2]) == (0, 0, 0, shade)
    assert abs(int(overlay[1, 3]) - (tint + shade) / 2) <= 1
    # Relative to the largest entry: half the map is the same picture.
    np.testing.assert_array_equal(
        overlays.map_overlay(np.float32([[0.3, 0.1]])), overlays.map_overlay(np.float32([[0.9, 0.3]]))
    )
    assert overlays.map_overlay(np.float32([[1, 0]]))[0, 0, 3] == 0


def test_an_overlay_is_composited_patch_by_patch():
    overlay = np.uint8([[[255, 0, 0, 255], [0, 0, 0, 0], [0, 0, 255, 51]]])
    image = np.full((2, 6, 3), 100, np.uint8)
    found = overlays.lay_over(image, overlay, smooth=False)
    np.testing.assert_array_equal(found[:, :2], np.broadcast_to([255, 0, 0], (2, 2, 3)))
    np.testing.assert_array_equal(found[:, 2:4], image[:, 2:4])
    np.testing.assert_allclose(found[0, 5], [80, 80, 0.8 * 100 + 0.2 * 255], atol=1)


def test_principal_components_are_scikit_learns():
    x = rng.normal(size=(4, 6, 5)).astype(np.float32) * np.float32([9, 5, 3, 1, 1])
    colours = overlays.pca_colours(x, GRID)
    assert colours.shape == (4, 2, 3, 3) and colours.min() == 0 and colours.max() == 1
    scores = PCA(3).fit_transform(x.reshape(-1, 5))
    for mine, theirs in zip(colours.reshape(-1, 3).T, scores.T, strict=True):
        inside = (mine > 0) & (mine < 1)  # the ends are cut off
        assert inside.sum() >= 20
        assert abs(np.corrcoef(mine[inside], theirs[inside])[0, 1]) > 1 - 1e-5


def test_votes_and_their_order():
    L, p = rng.random((4, 6, 3), np.float32), rng.random((4, 3), np.float32)
    votes = overlays.prototype_votes(L, p)
    assert np.isclose(votes[1, 5], sum(L[1, 5, r] * p[1, r] for r in range(3)))
    best = [max(row) for row in votes]
    assert list(overlays.strongest(votes, 2)) == sorted(range(4), key=lambda i: -best[i])[:2]


def test_token_sheet_and_maps_show_every_token():
    L, masks = np.stack([HARD, HARD]), np.zeros((2, *IMAGES.shape[1:3]), np.uint8)
    figure = viz.token_sheet(IMAGES[:2], IMAGES[:2] / np.float32(255), L, GRID, masks)
    assert [a.get_title() for a in figure.axes[:7]][4:] == ["token 0", "token 1", "token 2"]
    relative = (HARD[:, 2] - HARD[:, 2].min()) / np.ptp(HARD[:, 2])
    np.testing.assert_allclose(shown(figure, 1, 6, 7), relative.reshape(GRID), atol=1e-6)
    figure = viz.localization_maps(IMAGES[:2], L, GRID)
    np.testing.assert_array_equal(shown(figure, 1, 0, 5), IMAGES[1])
    expected = overlays.lay_over(IMAGES[1], overlays.token_overlay(HARD, 2, GRID))
    np.testing.assert_array_equal(shown(figure, 1, 4, 5), expected)
    # Token 2 is clear above and dark below.
    assert expected[:3].mean() > 2 * expected[-3:].mean()


def test_matched_tokens_stand_below_their_partners():
    match = np.array([2, 0, 1])
    figure = viz.matched_tokens(IMAGES[:2], np.stack([HARD, HARD[:, [1, 2, 0]]]), match, GRID)
    assert [a.get_title() for a in figure.axes[1:4]] == ["0 → 2", "1 → 0", "2 → 1"]
    colour = overlays.token_colours(3)
    for i in range(3):  # the permutation above puts the same map at the partner's place
        overlay = overlays.map_overlay(HARD[:, i].reshape(GRID), colour[i])
        for row in range(2):
            np.testing.assert_array_equal(
                shown(figure, row, 1 + i, 4), overlays.lay_over(IMAGES[row], overlay)
            )


def test_reconstructions_components_and_prototypes():
    figure = viz.reconstructions(IMAGES, IMAGES / np.float32(255))
    np.testing.assert_allclose(shown(figure, 1, 3, 4), IMAGES[3] / 255, atol=1e-6)
    U = rng.normal(size=(4, 6, 8)).astype(np.float32)
    figure = viz.features_pca(IMAGES, U, U[:, ::-1], GRID)
    np.testing.assert_array_equal(shown(figure, 1, 2, 4), overlays.pca_colours(U, GRID)[2])
    assert [a.get_ylabel() for a in figure.axes[::4]] == ["image", "U", "Z = L S"]
    L = np.stack([HARD] * 4)
    p = np.zeros((4, 1, 3), np.float32)
    p[:, 0, 2] = [0.1, 0.9, 0.4, 0.6]  # token 2 votes, most in image 1
    figure = viz.prototype_page(IMAGES, L, p, GRID, ["prototype 5"], count=3)
    for column, i in enumerate((1, 3, 2)):
        picture = shown(figure, 0, column, 3)
        np.testing.assert_array_equal(picture[:2], IMAGES[i][:2])  # where all votes are
        assert picture[-2:].mean() < 0.4 * IMAGES[i][-2:].mean()


def test_metrics_file_to_curves(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 1, "time": 9.0, "total": 100.0},
        {"step": 5, "time": 9.5, "total": 2.0, "health/a": 0.5},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = viz.read_metrics(path)
    assert {name: [list(x) for x in pair] for name, pair in metrics.items()} == {
        "total": [[1, 5], [100.0, 2.0]],
        "health/a": [[5], [0.5]],
    }
    figure = viz.training_curves(metrics, ["total", "health/a"], columns=3)
    assert isinstance(figure, matplotlib.figure.Figure)
    first, second, rest = figure.axes
    np.testing.assert_array_equal(first.lines[0].get_xydata(), [[1, 100], [5, 2]])
    assert (first.get_yscale(), second.get_yscale(), rest.axison) == ("log", "linear", False)
    assert first.get_xlabel() == second.get_xlabel() == "step"


def test_a_missing_or_damaged_metrics_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing.jsonl cannot be read .*; give a run's metrics.jsonl"):
        viz.read_metrics(tmp_path / "nothing.jsonl")
    good, cut = '{"step": 1, "total": 2.0}\n', '{"step": 2, "to'
    (tmp_path / "killed.jsonl").write_text(good + cut)
    assert list(viz.read_metrics(tmp_path / "killed.jsonl")["total"][0]) == [1]
    (tmp_path / "cut.jsonl").write_text(good + cut + "\n" + good)
    with pytest.raises(UserError, match=r"cut.jsonl is damaged at line 2; delete"):
        viz.read_metrics(tmp_path / "cut.jsonl")
