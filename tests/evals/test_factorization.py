"""Measures of the factorization where the answer is known: made-up tokens and maps."""

import numpy as np
import pytest

from sparse_vis.evals.factors.factorization import (
    Crop,
    centroids,
    class_leak,
    edit_fidelity,
    equivariance,
    invariance,
    matches,
    position_leak,
    seen_through,
)
from sparse_vis.ops.token_maps import move_token

pytestmark = pytest.mark.fast
SIDE, PATCH, GRID = 48, 6, (8, 8)


def blobs(rng, count, tokens):
    """L: soft maps of round blobs at random places, in the order of the tokens."""
    centres = rng.uniform(0.15, 0.85, (count, tokens, 2))
    y, x = np.divmod(np.arange(64), 8)
    place = (np.stack([x, y], -1) + 0.5) / 8
    distance = ((place[None, :, None] - centres[:, None]) ** 2).sum(-1)
    L = np.exp(-distance / 0.02)
    return L / L.sum(-1, keepdims=True)


def test_invariance_finds_shuffled_tokens_of_the_same_image():
    rng = np.random.default_rng(0)
    S = rng.normal(size=(6, 4, 16)).astype(np.float32)
    shuffled = S[:, [2, 0, 3, 1]]
    assert (matches(S, shuffled) == [1, 3, 0, 2]).all()
    found = invariance(S, shuffled)
    assert found["S_same_image"] == pytest.approx(1, abs=1e-6) and found["S_other_image"] < 0.5


@pytest.mark.parametrize("flip", [False, True])
def test_a_map_of_positions_is_seen_where_the_crop_looks(flip):
    """L's columns are linear in the patch's place, so interpolation is exact and the answer is arithmetic."""
    y, x = np.divmod(np.arange(64), 8)
    L = np.stack([x * PATCH + PATCH / 2 - 0.5, y * PATCH + PATCH / 2 - 0.5], -1)
    crop = Crop(top=10, left=7, height=25, width=31, flip=flip)
    seen = seen_through(L, crop, SIDE, PATCH, view_side=24).reshape(4, 4, 2)
    pixel = (np.arange(4) + 0.5) * PATCH - 0.5
    columns = 7 + (23 - pixel if flip else pixel) * 30 / 23
    np.testing.assert_allclose(seen[..., 0], np.broadcast_to(columns, (4, 4)), atol=1e-9)
    np.testing.assert_allclose(seen[..., 1].T, np.broadcast_to(10 + pixel * 24 / 23, (4, 4)), atol=1e-9)


def test_equivariance_is_one_where_L_moves_with_the_image():
    rng = np.random.default_rng(1)
    L = blobs(rng, 5, 4)
    boxes = np.concatenate([rng.integers(0, 12, (5, 2)), rng.integers(24, 36, (5, 2))], axis=1).tolist()
    crops = [Crop(*box, flip=bool(i % 2)) for i, box in enumerate(boxes)]
    order = np.stack([rng.permutation(4) for _ in range(5)])
    seen = [seen_through(own, crop, SIDE, PATCH, 24) for own, crop in zip(L, crops, strict=True)]
    views = np.stack([maps[:, np.argsort(o)] for maps, o in zip(seen, order, strict=True)])
    sizes = dict(side=SIDE, patch=PATCH, view_side=24)
    found = equivariance(L, views, order, crops, **sizes)
    assert found["L_moved"] == pytest.approx(1)
    assert found["L_unmoved"] < 0.9 and found["L_other_crop"] < 0.9


def test_centroids_and_what_leaks():
    rng = np.random.default_rng(2)
    L = blobs(rng, 300, 3)
    one = np.zeros((1, 64, 2))
    one[0, 9, 0], one[0, :, 1] = 1, 1
    np.testing.assert_allclose(centroids(one, GRID)[0], [[1.5 / 8, 1.5 / 8], [0.5, 0.5]])
    noise = rng.normal(size=(300, 3, 8))
    telling = np.concatenate([centroids(L, GRID) @ rng.normal(size=(2, 4)), noise[..., :4]], -1)
    assert position_leak((telling[:200], L[:200]), (telling[200:], L[200:]), GRID) > 0.99
    assert abs(position_leak((noise[:200], L[:200]), (noise[200:], L[200:]), GRID)) < 0.1
    owner = L[:, 27].argmax(-1)  # which token has a patch near the middle
    assert class_leak(L[:200], owner[:200], L[200:], owner[200:]) > 0.9
    chance = rng.integers(0, 2, 300)
    assert class_leak(L[:200], chance[:200], L[200:], chance[200:]) < 0.65


def test_a_moved_map_is_elsewhere_and_rows_sum_to_one():
    L = blobs(np.random.default_rng(3), 1, 3)
    moved = move_token(L[0], 1, (2, -1), GRID)
    np.testing.assert_allclose(moved.sum(-1), 1)
    before, after = L[0, :, 1].reshape(GRID), moved[:, 1].reshape(GRID)
    np.testing.assert_array_equal(after[2:, :-1], before[:-2, 1:])
    assert (after[:2] == 0).all() and (after[:, -1] == 0).all()
    still = move_token(L[0], 1, (0, 0), GRID)
    np.testing.assert_allclose(still, L[0], atol=1e-5)


def test_edits_that_take_effect_and_edits_that_do_not():
    rng = np.random.default_rng(4)
    L = blobs(rng, 3, 4)
    S = rng.normal(size=(3, 4, 16))
    edited = np.stack([move_token(a, 0, (3, 3), GRID) for a in L])
    image = {}

    def decode(S, L):
        image["S"], image["L"] = S[:, ::-1], L[:, :, ::-1]  # comes back in another order
        return "image"

    ours = edit_fidelity(S, L, S, edited, lambda _: (image["S"], image["L"]), decode)
    assert ours["S_edited"] == pytest.approx(1) and ours["L_edited"] == pytest.approx(1)
    assert ours["L_before"] < 0.95
    deaf = edit_fidelity(S, L, S, edited, lambda _: (S, L), decode)
    assert deaf["L_before"] == pytest.approx(1) and deaf["L_edited"] < 0.95
