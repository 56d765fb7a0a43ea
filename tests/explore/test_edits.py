"""Each edit on maps small enough to write down; lists of edits; files that are read back."""

import json

import numpy as np
import pytest
from scipy.special import softmax

from sparse_vis.explore.edits import FIELDS, KINDS, MOST, replay
from sparse_vis.explore.saved import read_saved, to_npz
from sparse_vis.runtime.errors import UserError
from tests.documents import ROOT, python_blocks

pytestmark = pytest.mark.fast

GRID = (3, 4)  # not square, so that rows and columns cannot be confused
rng = np.random.default_rng(0)
COSINES = rng.uniform(-1, 1, (12, 3))
L = softmax(COSINES / 0.5, axis=1).astype(np.float32)
S = rng.normal(size=(3, 5)).astype(np.float32)


def with_first(map_):
    """An L whose token 0 has this map; tokens 1 and 2 share the rest as 3 to 1."""
    map_ = np.float32(map_).ravel()
    return np.stack([map_, 0.75 * (1 - map_), 0.25 * (1 - map_)], axis=1)


def edited(maps, *edits, grid=GRID):
    """Map of token 0 after edits of it."""
    return replay(S, maps, grid, [{"token": 0, **edit} for edit in edits]).L[:, 0].reshape(grid)


def test_another_temperature_is_the_softmax_at_that_temperature():
    found = replay(S, L, GRID, [{"kind": "temper", "power": 0.5 / 0.2}])
    np.testing.assert_allclose(found.L, softmax(COSINES / 0.2, axis=1), atol=1e-6)
    assert found.L.dtype == np.float32


def test_erasing_is_the_softmax_over_the_others_and_erased_tokens_stay_away():
    found = replay(S, L, GRID, [{"kind": "erase", "token": 1}])
    np.testing.assert_allclose(found.L[:, [0, 2]], softmax(COSINES[:, [0, 2]] / 0.5, axis=1), atol=1e-6)
    assert not found.L[:, 1].any() and found.S is S
    found = replay(S, L, GRID, [{"kind": "erase", "token": token} for token in (1, 0)])
    np.testing.assert_array_equal(found.L, np.tile(np.float32([0, 0, 1]), (12, 1)))
    with pytest.raises(UserError, match=r"edit 3: token 2 is the only one left; one must stay"):
        replay(S, L, GRID, [{"kind": "erase", "token": token} for token in (1, 0, 2)])


def test_moved_copied_and_mirrored_maps():
    maps = with_first([[0, 0, 0, 0], [0, 0.9, 0.3, 0], [0, 0, 0, 0]])
    move = {"kind": "move", "down": 1, "right": -1}
    np.testing.assert_array_equal(edited(maps, move)[2], np.float32([0.9, 0.3, 0, 0]))
    assert not edited(maps, move)[:2].any() and not edited(maps, {**move, "down": 900}).any()
    both = edited(maps, {"kind": "copy", "down": 1, "right": -1})
    np.testing.assert_array_equal(both, maps[:, 0].reshape(GRID) + edited(maps, move))
    # Mirrored at 1.25, the centre of mass, rounded to 1: the 0.3 lands left of the 0.9, at column 0.
    sideways = edited(maps, {"kind": "mirror", "axis": "horizontal"})
    np.testing.assert_allclose(sideways[1], [0.3, 0.9, 0, 0], atol=1e-6)
    turned = with_first(maps[:, 0].reshape(GRID).T)
    upside = edited(turned, {"kind": "mirror", "axis": "vertical"}, grid=GRID[::-1])
    np.testing.assert_allclose(upside, sideways.T, atol=1e-6)


def test_scaled_maps_are_interpolated_around_their_centre():
    map_ = np.zeros((7, 7))
    map_[2:5, 2:5] = 0.5
    wide = edited(with_first(np.resize(map_, 49)), {"kind": "scale", "factor": 2.0}, grid=(7, 7))
    along = np.interp(3 + (np.arange(7) - 3) / 2, np.arange(7), [0, 0, 1, 1, 1, 0, 0])
    np.testing.assert_allclose(wide, 0.5 * np.outer(along, along), atol=1e-6)
    small = edited(with_first(map_), {"kind": "scale", "factor": 0.5}, grid=(7, 7))
    assert small.sum() < map_.sum() and small[3, 3] == np.float32(0.5)


def test_the_other_tokens_share_what_is_left_in_their_old_proportions():
    painted = replay(S, L, GRID, [{"kind": "paint", "token": 2, "patches": [5, 6], "amount": 0.25}]).L
    np.testing.assert_allclose(painted[5:7, 2], 0.25)
    np.testing.assert_allclose(painted[5:7, 0] / painted[5:7, 1], L[5:7, 0] / L[5:7, 1], rtol=1e-5)
    rest = np.delete(np.arange(12), [5, 6])
    np.testing.assert_allclose(painted[rest], L[rest], atol=1e-6)


def test_a_painted_token_that_was_erased_is_back():
    edits = [{"kind": "erase", "token": 1}, {"kind": "paint", "token": 1, "patches": [0], "amount": 1}]
    np.testing.assert_array_equal(replay(S, L, GRID, edits).L[0], np.float32([0, 1, 0]))


def test_a_replaced_token_keeps_its_map():
    edit = {"kind": "replace", "token": 1, "vector": S[0].tolist(), "amount": 0.25}
    found = replay(S, L, GRID, [edit])
    np.testing.assert_allclose(found.S[1], 0.75 * S[1] + 0.25 * S[0], rtol=1e-6)
    np.testing.assert_array_equal(np.delete(found.S, 1, axis=0), np.delete(S, 1, axis=0))
    assert found.L is L


MANY = [
    {"kind": "temper", "power": 1.7},
    {"kind": "scale", "token": 0, "factor": 1.3},
    {"kind": "mirror", "token": 1, "axis": "vertical"},
    {"kind": "copy", "token": 1, "down": -1, "right": 1},
    {"kind": "move", "token": 2, "down": 0, "right": 1},
    {"kind": "replace", "token": 2, "vector": [0.1, 1 / 3, -2.5, 1e-7, 4], "amount": 0.7},
    {"kind": "paint", "token": 0, "patches": [0, 11], "amount": 1},
    {"kind": "erase", "token": 1},
]


def test_rows_sum_to_one_after_any_edits_and_the_input_stays_as_it_was():
    before = L.copy(), S.copy()
    for count in range(len(MANY) + 1):
        found = replay(S, L, GRID, MANY[:count])
        np.testing.assert_allclose(found.L.sum(axis=1), 1, atol=1e-5)
        assert found.L.min() >= 0 and found.L.dtype == found.S.dtype == np.float32
    assert {edit["kind"] for edit in MANY} == set(KINDS)
    np.testing.assert_array_equal(L, before[0])
    np.testing.assert_array_equal(S, before[1])


def test_a_saved_file_replays_to_the_same_bits(tmp_path):
    (tmp_path / "a.npz").write_bytes(to_npz(S, L, GRID, MANY))
    saved, now = read_saved(tmp_path / "a.npz"), replay(S, L, GRID, json.loads(json.dumps(MANY)))
    assert saved.edits == MANY and saved.grid == GRID
    for found, expected in zip([*saved.edited, saved.S, saved.L], [*now, S, L], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_documented_code_decodes_a_saved_file(tmp_path, monkeypatch):
    maps, tokens = np.tile(np.float32([[0.5, 0.5]]), (64, 1)), np.float32(rng.normal(size=(2, 96)))
    edits = [{"kind": "erase", "token": 0}]
    (tmp_path / "coffee-edited.npz").write_bytes(to_npz(tokens, maps, (8, 8), edits))
    monkeypatch.chdir(tmp_path)
    [code, _], space = python_blocks(ROOT / "docs" / "explore.md"), {}
    exec(compile(code, "docs/explore.md", "exec"), space)
    np.testing.assert_allclose(space["L"] @ space["S"], np.tile(tokens[1], (64, 1)), rtol=1e-6)
    assert space["pixels"].shape == (64, 64, 3)


UNFIT = {
    "shapes": {"L": L[:7]}, "negative": {"grid": (-3, -4)}, "fractions": {"grid": (3.0, 4.0)},
    "letters": {"S": S.astype(str)}, "doubles": {"L": L.astype(float)}, "NaN": {"S": np.full_like(S, np.nan)},
    "below zero": {"L": -L}, "deep": {"edits": "[" * 10**5},
}  # fmt: skip


@pytest.mark.parametrize("what", ["absent", "text", "empty", "other", "damaged", *UNFIT])
def test_files_that_the_page_did_not_save_are_refused(tmp_path, what):
    path = tmp_path / "a.npz"
    if what == "text":
        path.write_text("no archive")
    elif what == "other":
        np.savez(path, x=S)
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "damaged":  # the compressed numbers of S, which follow a name and an extra field
        file = bytearray(to_npz(S, L, GRID, []))
        file[30 + file[26] + file[28]] = 0xFF  # no kind of block
        path.write_bytes(file)
    elif what != "absent":
        np.savez(path, **{"S": S, "L": L, "grid": GRID, "edits": "[]", **UNFIT[what]})
    with pytest.raises(UserError, match=r"a\.npz was not saved by the page \(.*\); give such a \.npz file"):
        read_saved(path)


WRONG = {
    "token": [-1, 3, True, "0", 1.0, None], "down": [0.5, 10**9], "right": ["2"], "axis": ["diagonal", []],
    "factor": [0, -1, float("nan"), float("inf"), 10**400], "power": [0], "amount": [1.1, -0.1, [1]],
    "patches": [[12], [-1], [0.5], 3, [[0]]], "vector": [[1.0] * 4, [float("nan")] * 5, "abcde"],
}  # fmt: skip


def test_wrong_fields_are_refused_in_a_sentence():
    assert set(WRONG) == set(FIELDS)
    for name, values in WRONG.items():
        edit = next(edit for edit in MANY if name in edit)
        for value in values:
            with pytest.raises(
                UserError, match=rf"^edit 2: {name} of {edit['kind']} is not .*; change it\.$"
            ):
                replay(S, L, GRID, [MANY[1], {**edit, name: value}])


@pytest.mark.parametrize(
    ("edits", "sentence"),
    [
        ([{"kind": "explode"}], "edit 1: 'explode' is not a kind of edit; give one of temper, erase"),
        ([{"kind": ["erase"]}], "edit 1: .* is not a kind of edit"),
        (["erase"], "edit 1: None is not a kind of edit"),
        ([{"kind": "erase"}], "edit 1: erase takes token; give these fields and no others"),
        ([{"kind": "erase", "token": 0, "amount": 1}], "edit 1: erase takes token"),
        ({"kind": "erase"}, "the edits are not a list; give a list"),
        ([MANY[0]] * (MOST + 1), "there are more than 1000 edits; undo some"),
    ],
)
def test_what_is_no_list_of_edits_is_refused(edits, sentence):
    with pytest.raises(UserError, match=sentence):
        replay(S, L, GRID, edits)
