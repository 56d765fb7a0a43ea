"""A segmenter is fitted on label maps, saved beside its model, and gives every pixel's class from S and L."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sparse_vis
from sparse_vis.commands import export
from sparse_vis.interop import probe_file
from sparse_vis.runtime.errors import UserError
from tests.tiny_checkpoint import PATCH, SIZE

CLASSES = ("background", "thing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images, dark above and bright below or the reverse, and their maps: bright is the thing."""
    path = tmp_path_factory.mktemp("data")
    for kind in ("images", "masks"):
        (path / kind).mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        bright = np.arange(37)[:, None] >= (12, 24)[i % 2]
        bright = np.broadcast_to(bright if i % 3 else ~bright, (37, 37))
        pixels = np.where(bright[..., None], 230, 20) + rng.integers(-15, 15, (37, 37, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path / "images" / f"{i}.png")
        Image.fromarray(bright.astype(np.uint8)).save(path / "masks" / f"{i}.png")
    return path


def test_a_segmenter_is_saved_beside_its_model_and_segments(workdir, folder, tmp_path, capsys):
    workdir = shutil.copytree(workdir, tmp_path / "run")
    loaded = sparse_vis.load(workdir)
    images = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE + PATCH + 3, 3), dtype=np.uint8)
    with pytest.raises(UserError, match="this model has no segmenter; fit one"):
        sparse_vis.segment(*loaded, images)
    *_, report = sparse_vis.segmenter(
        *loaded, folder / "images", folder / "masks", CLASSES, epochs=4, batch=4, save=workdir
    )
    assert report["held_out"] == 2 and report["fitted"] == 10 and 0 <= report["miou"] <= 1
    model, params = sparse_vis.load(workdir)
    said = capsys.readouterr().out
    assert model.segmenter.classes == CLASSES and "mIoU" in said
    assert f"wrote {workdir / probe_file.SEGMENTER}; load it with sparse_vis.load(MODEL, segmenter=" in said
    found = sparse_vis.segment(model, params, images)
    assert found.dtype == np.uint8 and found.shape == (2, SIZE, SIZE + PATCH)
    export.export_released(str(workdir), tmp_path / "released")
    np.testing.assert_array_equal(sparse_vis.segment(*sparse_vis.load(tmp_path / "released"), images), found)
    squares = sparse_vis.segment(model, params, folder / "images", batch=5)
    assert squares.shape == (12, SIZE, SIZE)
    order = sorted((folder / "images").iterdir())
    np.testing.assert_array_equal(sparse_vis.segment(model, params, order[3:4])[0], squares[3])
    with pytest.raises(UserError, match=r"is a segmenter; give it as segmenter=\.$"):
        sparse_vis.load(workdir, probe=workdir / probe_file.SEGMENTER)

    # By hand: p = L softmax(S W + b) of the patches, enlarged by Pillow.
    features = sparse_vis.encode(model, params, images)
    logits = np.asarray(features.sparse) @ np.asarray(params["segmenter"]["kernel"])
    logits = logits + np.asarray(params["segmenter"]["bias"])
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    p = (np.asarray(features.spatial) @ share).reshape(2, SIZE // PATCH, -1, 2)
    for number in range(2):
        large = [
            Image.fromarray(p[number, ..., c]).resize((SIZE + PATCH, SIZE), Image.Resampling.BILINEAR)
            for c in range(2)
        ]
        expected = np.argmax(np.stack([np.asarray(x) for x in large]), axis=0)
        assert np.mean(found[number] == expected) > 0.999


def test_a_segmenter_of_a_packaged_model_is_loaded_from_its_own_place(folder, tmp_path):
    loaded = sparse_vis.load("scenes-tiny")
    model, params, _ = sparse_vis.segmenter(
        *loaded, folder / "images", folder / "masks", CLASSES, epochs=1, save=tmp_path / "mine"
    )
    again = sparse_vis.load("scenes-tiny", segmenter=tmp_path / "mine")
    assert again[0] == model
    np.testing.assert_array_equal(again[1]["segmenter"]["kernel"], params["segmenter"]["kernel"])
    sparse_vis.probe(*loaded, [(path, i % 2) for i, path in enumerate((folder / "images").iterdir())],
                     save=tmp_path / "mine")  # fmt: skip
    with pytest.raises(UserError, match=r"is a classifier; give it as probe=\.$"):
        sparse_vis.load("scenes-tiny", segmenter=tmp_path / "mine" / "probe.safetensors")


def test_listed_images_have_the_maps_of_their_folder(loaded, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    how = dict(classes=np.array(CLASSES), epochs=1, batch=4)
    *_, expected = sparse_vis.segmenter(*loaded, "images", "masks", **how)
    paths = sorted(Path("images").iterdir())
    for listed in (paths, np.array([str(path.absolute()) for path in paths])):
        *_, report = sparse_vis.segmenter(*loaded, listed, "masks", **how)
        assert report["iou"] == expected["iou"] and report["fitted"] == 10
    # At least one image is fitted, and one held out. Between folders, names have the folder.
    Path("deep/images").mkdir(parents=True)
    (Path("deep/masks/images")).mkdir(parents=True)
    for path, name in ((paths[0], "images/a.b"), (paths[1], "c")):
        shutil.copy(path, f"deep/{name}.png")
        shutil.copy(f"masks/{path.name}", f"deep/masks/{name}.png")
    *_, report = sparse_vis.segmenter(
        *loaded, ["deep/images/a.b.png", "deep/c.png"], "deep/masks", CLASSES, epochs=1, holdout=0.999
    )
    assert report["fitted"] == report["held_out"] == 1


def test_it_learns_what_a_map_shows(folder):
    """With the shipped model, whose L follows edges."""
    loaded = sparse_vis.load("pictures-tiny")
    *_, report = sparse_vis.segmenter(
        *loaded, folder / "images", folder / "masks", CLASSES, epochs=60, batch=5, holdout=0.34
    )
    assert report["held_out"] == 4 and report["miou"] > 0.8


@pytest.mark.fast
def test_wrong_maps_are_one_sentence(loaded, folder, tmp_path):
    masks = shutil.copytree(folder / "masks", tmp_path / "masks")
    (masks / "7.png").unlink()
    with pytest.raises(UserError, match=r"label map .*7\.png is missing; masks needs one for every image"):
        sparse_vis.segmenter(*loaded, folder / "images", masks, CLASSES)
    Image.fromarray(np.full((37, 37), 2, np.uint8)).save(masks / "0.png")
    with pytest.raises(UserError, match=r"0\.png has class 2, but the number of classes is 2; raise it"):
        sparse_vis.segmenter(*loaded, folder / "images", masks, CLASSES)
    images, array = sorted((folder / "images").iterdir()), np.zeros((9, 9, 3), np.uint8)
    for data, changes, match in (
        (images, {"masks": "missing"}, r"^masks=missing is not a folder; give the folder with the label"),
        ([array] * 3, {}, r"the images in a list have no names, by which label maps are found; give a"),
        ([{"image": array, "name": "/a.png"}] * 3, {}, r"name '/a\.png' leads out of the folder"),
        ([{"image": array, "name": "a/../b.png"}] * 3, {}, r"leads out of the folder .*; give one below it"),
        (images[:1], {}, r"there is one image in .*; a segmenter needs two"),
        (images, {"classes": CLASSES[:1]}, r"needs 2 to 255 classes, .* but `classes` has 1; name those"),
        (images, {"classes": list(map(str, range(256)))}, r"needs 2 to 255 classes, .* `classes` has 256;"),
        (images, {"epochs": 0}, r"^epochs=0 is not a whole number of at least 1"),
        (images, {"save": images[0]}, r"^save=.*0\.png cannot be written \(.*0\.png is a file\)"),
    ):
        given = {"masks": masks, "classes": CLASSES} | changes
        with pytest.raises(UserError, match=match):
            sparse_vis.segmenter(*loaded, data, **given)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot decode 'bad\.png' .*; repair or remove it") as error:
        sparse_vis.segmenter(*loaded, [tmp_path / "bad.png"] * 2, masks, CLASSES)
    assert "--" not in str(error.value)
