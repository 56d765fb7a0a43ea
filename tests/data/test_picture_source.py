"""Pictures composed of a folder of objects and photographs."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from sparse_vis.data.compose import SPLITS
from sparse_vis.data.pictures import PictureSource, PictureSpec
from sparse_vis.data.sources import announce, make_source
from sparse_vis.runtime.errors import UserError

COLOURS = {"discs": (250, 0, 0), "squares": (0, 0, 250)}
GROUNDS = {split: (0, 200, 10 * i) for i, split in enumerate(SPLITS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Red discs and blue squares, 100 pixels a side, and a green photograph per split."""
    top = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[:100, :100]
    shapes = {"discs": (y - 49.5) ** 2 + (x - 49.5) ** 2 < 50**2, "squares": np.ones((100, 100), bool)}
    for split in SPLITS:
        for name, inside in shapes.items():
            drawn = np.zeros((100, 100, 4), np.uint8)
            drawn[inside] = (*COLOURS[name], 255)
            (top / "objects" / split / name).mkdir(parents=True)
            Image.fromarray(drawn).save(top / "objects" / split / name / "a.png")
        (top / "photographs" / split).mkdir(parents=True)
        Image.new("RGB", (300, 200), GROUNDS[split]).save(top / "photographs" / split / "a.jpg", quality=100)
    return str(top)


def source(folder, split="train", **spec):
    return PictureSource(folder, PictureSpec(**{"size": 48, **spec}), split=split, seed=0)


def test_masks_cover_objects_of_their_class(folder):
    found, counts = source(folder, photographs=0.0, plain=0.0, object_scale=(0.2, 0.3)), np.zeros(5, int)
    for i in range(100):
        r = found[i]
        number = int((r["labels"] >= 0).sum())
        counts[number] += 1
        assert r["image"].shape == (48, 48, 3) and set(np.unique(r["mask"])) == set(range(number + 1))
        assert r["label"] == (r["labels"][0] if number == 1 else -1)
        for k, label in enumerate(r["labels"][:number], start=1):
            inside = r["image"][r["mask"] == k].astype(int)
            colour = COLOURS[found.classes[label]]
            assert np.abs(np.median(inside, axis=0) - colour).max() <= 2  # antialiased at the edge alone
        assert np.abs(r["image"][r["mask"] == 0].astype(int).mean(0) - GROUNDS["train"]).max() < 60
    assert counts[0] == 0 and counts[1:].min() > 10


def test_an_edge_pixel_is_between_object_and_background(folder):
    found = source(folder, photographs=0.0, plain=0.0, max_objects=1)
    for i in range(20):
        image = found[i]["image"].astype(float)
        colour, ground = np.array(COLOURS[found.classes[found[i]["label"]]]), np.array(GROUNDS["train"])
        share = ((image - ground) @ (colour - ground)) / ((colour - ground) @ (colour - ground))
        mixed = ground + share[..., None] * (colour - ground)
        assert np.abs(image - mixed).max() < 3  # no dark fringe, which colours behind alpha would give


def test_photographs_alone_have_no_objects(folder):
    found = source(folder, photographs=1.0)
    for r in (found[i] for i in range(10)):
        assert not r["mask"].any() and (r["labels"] == -1).all() and r["label"] == -1
        assert np.abs(r["image"].astype(int) - GROUNDS["train"]).max() <= 2
    shares = [(source(folder, photographs=0.5)[i]["labels"] == -1).all() for i in range(200)]
    assert 70 < sum(shares) < 130
    assert all(found.singles()[i]["label"] >= 0 for i in range(20))


def test_records_depend_on_seed_split_and_number_alone(folder):
    found, again = source(folder), pickle.loads(pickle.dumps(source(folder)))
    assert len(pickle.dumps(found)) < 2000  # workers read the files themselves
    for i in (5, 3):
        assert all(np.array_equal(found[i][key], again[i][key]) for key in found[i])
    test = source(folder, "test")
    assert not np.array_equal(found[0]["image"], test[0]["image"])
    assert found.images_sha256 != test.images_sha256


def test_the_source_is_found_by_name(folder, capsys):
    spec = PictureSpec(train_records=7)
    found = make_source("pictures", split="train", path=folder, seed=1, scenes=None, pictures=spec)
    assert isinstance(found, PictureSource) and len(found) == 7
    announce(found)
    assert "7 images in split train of the pictures, 2 classes" in capsys.readouterr().out


@pytest.mark.fast
def test_a_category_that_only_one_split_has_counts(folder, tmp_path):
    top = shutil.copytree(folder, tmp_path / "pictures")
    shutil.rmtree(top / "objects" / "train" / "discs")
    test = source(str(top), split="test", photographs=0.0, max_objects=1)
    assert test.classes == source(str(top)).classes == ("discs", "squares")
    assert {test[i]["label"] for i in range(20)} == {0, 1}


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.path is not set"):
        make_source("pictures", split="train", path="", seed=0, scenes=None)
    with pytest.raises(UserError, match=r"has no objects/train; make it with python -m benchmarks"):
        source(str(tmp_path))
    (tmp_path / "objects" / "train" / "a").mkdir(parents=True)
    (tmp_path / "objects" / "train" / "a" / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="has no photographs/train"):
        source(str(tmp_path))
    (tmp_path / "photographs" / "train").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "photographs" / "train" / "a.jpg")
    with pytest.raises(UserError, match=r"b\.png cannot be read"):
        source(str(tmp_path))
    with pytest.raises(UserError, match=r"no split 'val'; choose one of train"):
        source(folder, "val")
