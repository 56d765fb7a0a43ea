"""A segmenter is fitted on label maps, saved beside its model, and gives every pixel's class from S and L."""

import shutil

import numpy as np
import pytest
from PIL import Image

import sparse_vis
from sparse_vis.commands import export
from sparse_vis.runtime.errors import UserError
from tests.tiny_checkpoint import PATCH, SIZE, write_checkpoints

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


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    write_checkpoints(path, {3: 1})
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
    assert model.segmenter.classes == CLASSES and "mIoU" in capsys.readouterr().out
    found = sparse_vis.segment(model, params, images)
    assert found.dtype == np.uint8 and found.shape == (2, SIZE, SIZE + PATCH)
    export.export_released(str(workdir), tmp_path / "released")
    np.testing.assert_array_equal(sparse_vis.segment(*sparse_vis.load(tmp_path / "released"), images), found)
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


def test_it_learns_what_a_map_shows(folder):
    """With the shipped model, whose L follows edges."""
    loaded = sparse_vis.load("pictures-tiny")
    *_, report = sparse_vis.segmenter(
        *loaded, folder / "images", folder / "masks", CLASSES, epochs=60, batch=5, holdout=0.34
    )
    assert report["held_out"] == 4 and report["miou"] > 0.8


@pytest.mark.fast
def test_wrong_maps_are_one_sentence(workdir, folder, tmp_path):
    loaded = sparse_vis.load(workdir)
    masks = shutil.copytree(folder / "masks", tmp_path / "masks")
    (masks / "7.png").unlink()
    with pytest.raises(UserError, match=r"label map .*7\.png is missing; masks needs one for every image"):
        sparse_vis.segmenter(*loaded, folder / "images", masks, CLASSES)
    Image.fromarray(np.full((37, 37), 2, np.uint8)).save(masks / "0.png")
    with pytest.raises(UserError, match=r"0\.png has class 2, but the number of classes is 2; raise it"):
        sparse_vis.segmenter(*loaded, folder / "images", masks, CLASSES)
    with pytest.raises(UserError, match=r"or 1 classes is out of range"):
        sparse_vis.segmenter(*loaded, folder / "images", masks, CLASSES[:1])
