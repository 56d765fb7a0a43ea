"""Kept patches: exact counts, and the recorded distributions within the error of 20,000 + 20,000 samples."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from sparse_vis.runtime.errors import UserError
from sparse_vis.views.make import ViewSpec
from sparse_vis.views.masking import visible_count, visible_patches
from tests.golden_data import files

KINDS = ("uniform", "gaussian", "block")
SIGMAS = 5
RECORDED_NAME = {"uniform": "none", "gaussian": "gaussian", "block": "block"}


@pytest.fixture(scope="module", params=files("masks"), ids=lambda path: path.stem)
def recorded(request):
    with safe_open(request.param, "numpy") as file:
        return json.loads(file.metadata()["settings"]), load_file(request.param)


def sample(kind, grid, ratio, count, seed=0):
    draw = jax.jit(jax.vmap(lambda key: visible_patches(key, grid, ratio, kind)))
    return np.asarray(draw(jax.random.split(jax.random.key(seed), count)))


@pytest.fixture(scope="module", params=KINDS)
def drawn(request, recorded):
    settings, arrays = recorded
    side, count = settings["grid"], settings["samples"]
    kept = sample(request.param, (side, side), settings["masking_ratio"], count)
    visible = np.zeros((count, side * side))
    np.put_along_axis(visible, kept, 1, axis=1)
    mine = {
        name.split(".")[2]: a
        for name, a in arrays.items()
        if name.split(".")[1] == RECORDED_NAME[request.param]
    }
    return kept, visible.reshape(count, side, side), mine


def test_every_patch_is_kept_as_often_as_recorded(drawn):
    _, visible, recorded = drawn
    ours, theirs = visible.mean(0), recorded["visible_rate"]
    pooled = (ours + theirs) / 2
    error = np.sqrt(2 * pooled * (1 - pooled) / len(visible))
    assert (np.abs(ours - theirs) < SIGMAS * error).all()


def test_sums_over_patches_are_as_recorded(drawn):
    # Sharper than single patches: where the centre of a mask may lie shows in the border and in the halves.
    _, visible, recorded = drawn
    at = np.linspace(-1, 1, visible.shape[1])
    x, y = np.meshgrid(at, at)
    for weights in (np.sign(x), np.sign(y), np.maximum(abs(x), abs(y)) == 1, x**2 + y**2):
        ours = (visible * weights).sum((1, 2))
        theirs = (recorded["visible_rate"] * weights).sum()
        error = ours.std() * np.sqrt(2 / len(ours))
        assert abs(ours.mean() - theirs) < SIGMAS * error


def test_spread_is_as_recorded(drawn):
    kept, visible, recorded = drawn
    side = visible.shape[1]
    row, column = np.divmod(kept, side)
    spread = np.sqrt(row.var(1) + column.var(1)) / side
    (quantiles,) = (a for name, a in recorded.items() if name.startswith("spread_quantiles"))
    for level, quantile in zip([0.05, 0.25, 0.5, 0.75, 0.95], quantiles, strict=True):
        error = np.sqrt(2 * level * (1 - level) / len(spread))
        assert abs((spread < quantile).mean() - level) < SIGMAS * error


@pytest.mark.parametrize("kind", KINDS)
def test_kept_patches_are_sorted_and_distinct(kind):
    kept = sample(kind, (14, 14), 0.8, 500)
    assert kept.dtype == np.int32 and kept.shape[1] == 39
    assert (np.diff(kept, axis=1) > 0).all() and kept.min() >= 0 and kept.max() < 196


@pytest.mark.parametrize(
    "patches, ratio, keep",
    # (1 - 0.9) * 10 is 0.99... in floating point, and so one less than in decimals.
    [
        (196, 0.8, 39),
        (256, 0.8, 51),
        (16, 0.75, 4),
        (196, 0.6, 78),
        (30, 0.9, 2),
        (10, 0.9, 1),
        (1, 0.8, 1),
        (4, 0.0, 4),
    ],
)
def test_count(patches, ratio, keep):
    assert visible_count(patches, ratio) == keep


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [(3, 7), (9, 2), (1, 1)])
def test_grids_that_are_not_square(kind, grid):
    kept = sample(kind, grid, 0.6, 50)
    assert kept.shape == (50, visible_count(grid[0] * grid[1], 0.6))
    assert kept.min() >= 0 and kept.max() < grid[0] * grid[1]


def test_block_is_kept_whole():
    for kept in sample("block", (6, 8), 0.75, 40):  # 12 patches: a square of 3 x 3 and three others
        visible = np.zeros((6, 8), bool)
        visible.flat[kept] = True
        squares = np.lib.stride_tricks.sliding_window_view(visible, (3, 3))
        assert squares.all((2, 3)).any()


def test_focus_probability_zero_is_uniform_and_one_is_focused():
    def spread(kept):
        row, column = np.divmod(kept, 14)
        return np.sqrt(row.var(1) + column.var(1)) / 14

    def draw(probability):
        one = jax.vmap(lambda key: visible_patches(key, (14, 14), 0.8, "gaussian", probability))
        return np.asarray(jax.jit(one)(jax.random.split(jax.random.key(3), 500)))

    uniform = sample("uniform", (14, 14), 0.8, 500, seed=3)
    np.testing.assert_array_equal(draw(0.0), uniform)
    assert np.median(spread(draw(1.0))) < spread(uniform).min()


def test_bad_input_is_named_before_anything_is_drawn():
    with pytest.raises(UserError, match=r"views\.mask_kind='focal' "):
        ViewSpec(mask_kind="focal")
    with pytest.raises(UserError, match=r"views\.masking_ratio=1 "):
        ViewSpec(masking_ratio=1.0)
    with pytest.raises(UserError, match="size=8 is too small"):
        ViewSpec(size=8)
