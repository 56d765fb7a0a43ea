"""Data, workdirs and checkpoints that cannot be used: one sentence that names them, nothing lost."""

import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest
from main_process import TINY
from PIL import Image
from test_resume import metrics

import sparse_vis
from sparse_vis.runtime.errors import UserError
from sparse_vis.train.loop import Run


@pytest.fixture(scope="module")
def tiny():
    spec = importlib.util.spec_from_file_location("tiny_config", TINY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


@pytest.fixture
def images(tmp_path):
    """A folder of eight images, of which one is cut short."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        Image.effect_noise((30, 20), 50).convert("RGB").save(folder / f"{number}.jpg")
    data = (folder / "6.jpg").read_bytes()
    (folder / "6.jpg").write_bytes(data[: len(data) // 2])
    return folder


def test_a_truncated_jpeg_stops_the_run_or_is_skipped_counted_and_named(
    main, finished, images, tiny, tmp_path
):
    del finished  # only for what it has compiled
    # split is a subfolder of a folder of images
    data = ("--config.data.source=folder", f"--config.data.path={images}", "--config.data.split=")
    start = (f"--config={TINY}", *data)
    with main(*start, f"--workdir={tmp_path / 'stop'}") as stop:
        with main(*start, f"--workdir={tmp_path / 'go'}", "--config.data.on_error=skip") as go:
            assert go.end() == 0, go.output
        assert stop.end() == 1, stop.output
    error = stop.output.splitlines()[-1]
    assert error.startswith("error: ") and "'6.jpg'" in error and "--config.data.on_error=skip" in error
    assert "Traceback" not in stop.output
    assert metrics(tmp_path / "go")[-1]["skipped"] == 12  # one of eight, in 24 steps of four
    assert "skipped 12" in go.output and f"8 images in {images}, no classes" in go.output.splitlines()
    (line,) = (tmp_path / "go" / "skipped.txt").read_text().splitlines()
    assert line.startswith("6.jpg\tcannot decode '6.jpg' (")
    config = tiny()
    config.data.update(source="folder", path=str(images), split="", on_error="skip")
    assert Run(config, tmp_path / "go").skipped.count == 12


@pytest.mark.parametrize(
    "path,culprit", [("absent", "does not exist"), ("empty", "holds no image"), ("", "is not set")]
)
@pytest.mark.fast
def test_a_missing_or_empty_folder_is_named(tiny, tmp_path, path, culprit):
    (tmp_path / "empty").mkdir()
    config = tiny()
    config.data.update(source="folder", path=str(tmp_path / path) if path else "", split="")
    with pytest.raises(UserError, match=culprit) as error:
        Run(config, tmp_path / "run")
    assert "--config.data.path" in str(error.value) and not (tmp_path / "run").exists()


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_another_architecture_is_refused_and_loses_nothing(tiny, workdir):
    before = (workdir / "config.json").read_text()
    for section, name, value in (("model", "width", 32), ("teacher", "enabled", False)):
        config = tiny()
        config[section][name] = value
        with pytest.raises(UserError, match=rf"another architecture \({section}.{name}: .*another --workdir"):
            Run(config, workdir)
    assert (workdir / "config.json").read_text() == before
    assert {folder.name for folder in (workdir / "checkpoints").iterdir()} >= {"18", "24"}


def test_another_seed_in_the_workdir_of_a_finished_run_is_refused_and_changes_nothing(tiny, workdir):
    before, config = (workdir / "config.json").read_text(), tiny()
    config.seed = 1
    with pytest.raises(UserError, match=r"config.seed=0, this one has 1; give another --workdir"):
        Run(config, workdir)
    assert (workdir / "config.json").read_text() == before


def drop(step, item):
    shutil.rmtree(step / item)


def cut(step, item):
    """Leave a half of every larger file of an item."""
    for file in (step / item).rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage,item", [(drop, "params"), (drop, "data"), (cut, "params"), (cut, "config")])
def test_a_damaged_checkpoint_is_named_and_the_earlier_one_still_works(tiny, workdir, damage, item):
    step = workdir / "checkpoints" / "24"
    damage(step, item)
    with pytest.raises(UserError, match="incomplete") as error:
        Run(tiny(), workdir)
    assert str(step) in str(error.value) and "delete that folder" in str(error.value)
    assert "\n" not in str(error.value)
    shutil.rmtree(step)
    if (damage, item) == (cut, "params"):
        run = Run(tiny(), workdir)
        assert run.step == 18 and run.position == 18 * 4


def test_a_damaged_rest_stops_a_resume_but_not_load(tiny, workdir):
    cut(workdir / "checkpoints" / "24", "rest")
    with pytest.raises(UserError, match="incomplete or damaged"):
        Run(tiny(), workdir)
    _, params = sparse_vis.load(workdir)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("damage,item", [(drop, "params"), (cut, "params"), (cut, "config")])
def test_load_names_a_damaged_checkpoint(workdir, damage, item):
    damage(workdir / "checkpoints" / "24", item)
    with pytest.raises(UserError, match="checkpoints/24 is incomplete"):
        sparse_vis.load(workdir)


@pytest.mark.fast
def test_load_names_a_workdir_without_a_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        sparse_vis.load(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        sparse_vis.load(tmp_path / "absent")


def test_another_batch_size_goes_on_at_the_same_image(tiny, workdir):
    config = tiny()
    config.train.update(batch=6, steps=30)
    run = Run(config, workdir)
    batch, _ = next(run.batches())
    np.testing.assert_array_equal(batch.index, np.arange(96, 102))
    assert json.loads((workdir / "config.json").read_text())["train"]["batch"] == 6
