import numpy as np
import pytest
from PIL import Image

from sparse_vis.data import scenes
from sparse_vis.data.compose import SPLITS, place
from sparse_vis.data.scenes import SceneSource, SceneSpec
from sparse_vis.runtime.errors import UserError


def source(split="train", seed=0, **spec):
    return SceneSource(SceneSpec(**spec), split=split, seed=seed)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_a_record_depends_on_seed_split_and_number_alone():
    first = source()
    backwards = [source(train_records=10)[i] for i in reversed(range(10))][::-1]
    assert all(same(first[i], backwards[i]) for i in range(10))
    for other in (source(seed=1), source("validation"), source("test")):
        assert not any(np.array_equal(first[i]["image"], other[i]["image"]) for i in range(10))
    assert len({first[i]["image"].tobytes() for i in range(200)}) == 200


@pytest.mark.parametrize("size", [32, 48, 64])
def test_masks_and_labels_agree(size):
    found = source(size=size)
    counts = np.zeros(5, int)
    for i in range(200):
        r = found[i]
        assert r["image"].shape == (size, size, 3) and r["image"].dtype == np.uint8
        assert r["mask"].shape == (size, size) and r["mask"].dtype == np.uint8
        assert r["labels"].shape == (4,) and r["labels"].dtype == np.int32
        digits = int((r["labels"] >= 0).sum())
        assert (r["labels"][digits:] == -1).all()
        assert set(np.unique(r["mask"])) == set(range(digits + 1))
        assert r["label"] == (r["labels"][0] if digits == 1 else -1)
        counts[digits] += 1
    assert counts[0] == 0 and counts[1:].min() > 25  # 50 expected, standard deviation 6


def test_the_mask_is_where_the_digit_outweighs_a_plain_ground():
    found, tested = source(digits="one"), 0
    for i in range(60):
        r = found[i]
        ground = r["image"][0, 0].astype(float)
        border = np.concatenate([r["image"][0], r["image"][-1], r["image"][:, 0], r["image"][:, -1]])
        if (border != ground).any():
            continue  # a photograph
        tested += 1
        alpha = np.linalg.norm(r["image"] - ground, axis=-1)
        assert alpha.max() > 0.35 * 255  # visible
        alpha /= alpha.max()
        inside, outside = alpha[r["mask"] == 1].min(), alpha[r["mask"] == 0].max()
        assert inside > outside - 0.02 and inside > 0.45 and outside < 0.6
    assert tested > 10


def test_one_digit_is_centred_and_labelled_by_its_shape():
    glyphs, classes = scenes._digits()
    bank = np.stack([np.asarray(scenes._trim(g).resize((12, 12))) > 127 for g in glyphs[::4]]).reshape(
        1250, -1
    )
    found, right = source("test", digits="one"), 0
    for i in range(100):
        r = found[i]
        rows, columns = np.nonzero(r["mask"])
        box = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        assert abs(box[0] + box[1] - 64) <= 4 and abs(box[2] + box[3] - 64) <= 4
        shape = Image.fromarray(r["mask"][box[0] : box[1], box[2] : box[3]] * 255)
        query = (np.asarray(shape.resize((12, 12))) > 127).ravel()
        right += classes[::4][(bank != query).sum(1).argmin()] == r["label"]
    assert right >= 75  # nearest neighbour by shape; chance is 10


def test_splits_share_neither_digits_nor_regions():
    found = [source(split) for split in SPLITS]
    digits = [{np.asarray(g).tobytes() for g in s._glyphs} for s in found]
    assert [len(s._glyphs) for s in found] == [3500, 500, 1000]
    assert not (digits[0] & digits[1] or digits[0] & digits[2] or digits[1] & digits[2])
    for number, photo in enumerate(scenes._photographs()):
        together = np.concatenate([np.asarray(s._textures[number]) for s in found], axis=1)
        np.testing.assert_array_equal(together, np.asarray(photo))  # side by side: no column twice


def test_white_digits_on_black_are_the_embedded_digits():
    spec = SceneSpec(size=28, digits="one", colours="white", digit_scale=(0.7, 0.7))
    source = SceneSource(spec, split="train", seed=0)
    glyphs, classes = scenes._digits()
    for record in (source[i] for i in range(5)):
        image = record["image"].astype(np.int64)
        rows, columns = np.flatnonzero(image.any((1, 2))), np.flatnonzero(image.any((0, 2)))
        digit = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        same_class = [scenes._trim(glyph) for glyph in glyphs[classes == record["label"]]]
        scaled = [np.asarray(g.resize(digit.shape[1::-1], Image.Resampling.BILINEAR)) for g in same_class]
        assert max(digit.shape) == 20 and (digit == digit[..., :1]).all()
        assert any(np.abs(digit[..., 0] - glyph).max() <= 1 for glyph in scaled)


def test_a_new_digit_leaves_the_others_visible():
    glyph = scenes._trim(scenes._digits()[0][0])
    for seed in range(20):
        rng, mask = np.random.default_rng(seed), np.zeros((48, 48), np.uint8)
        mask[:, :20] = 1
        areas = [960]
        assert place(rng, glyph, mask, areas, (0.4, 0.5), centred=False)
        assert (mask == 1).sum() >= 0.9 * 960 and (mask == 2).sum() == areas[1] > 0
    full = np.ones((48, 48), np.uint8)
    full[0] = 0  # no room without hiding more than a tenth: nothing is drawn
    hidden = [int((full == 1).sum() / 0.91)]
    assert place(rng, glyph, full, hidden, (0.5, 0.5), centred=False) is None
    assert (full[1:] == 1).all() and len(hidden) == 1


def test_singles_have_one_object_each():
    many, one = source("test"), source("test", digits="one")
    assert all(many.singles()[i]["label"] >= 0 for i in range(30))
    assert one.singles() is one


@pytest.mark.parametrize(
    "wrong",
    [
        dict(digits="two"),
        dict(colours="red"),
        dict(max_digits=5),
        dict(size=8),
        dict(digit_scale=(0.5, 2.0)),
        dict(eval_records=0),
    ],
)
def test_wrong_specs_are_named(wrong):
    with pytest.raises(UserError, match=f"scenes.*{next(iter(wrong))}"):
        SceneSpec(**wrong)


def test_unknown_split_offers_the_known_ones():
    with pytest.raises(UserError, match=r"'val'.*train, validation, test"):
        source("val")


def test_the_tool_draws_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["scenes", f"--output={tmp_path}/a.png", "--size=32"])
    scenes.main()
    assert Image.open(tmp_path / "a.png").size == (12 * 36, 5 * 36)
    monkeypatch.setattr("sys.argv", ["scenes", f"--output={tmp_path}/no/a.png"])
    with pytest.raises(UserError, match=r"^--output=.*no/a\.png cannot be written \(.*\); give another"):
        scenes.main()
