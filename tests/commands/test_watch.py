"""config.train.probe_every: what is measured, on which images; the training stays the same."""

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sparse_vis
from sparse_vis.build import build_source
from sparse_vis.commands.run import train
from sparse_vis.commands.watch import Watch, held_out
from sparse_vis.config.defaults import default_config
from sparse_vis.data.own import OwnSource
from sparse_vis.train.stop import StopSignal
from sparse_vis.viz.figures import read_metrics
from tests.train.tiny_config import get_config

CLOCK = {"images_per_second", "input_wait_seconds"}


def run(workdir, steps=None, **settings):
    """A tiny run on scenes of one digit, stopped after `steps`."""
    config, stop = get_config(), StopSignal()
    config.data.scenes.max_digits = 1
    config.train.update(settings)

    def show(text):
        if text.startswith(f"step {steps}/"):
            stop.number = 15

    train(config, workdir, stop, show=show)
    return config


def nearest(train_x, train_y, test_x, k=20, temperature=0.07):
    """Weighted kNN by its definition."""
    train_x, test_x = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train_x, test_x))
    cosines, found = test_x @ train_x.T, []
    for row in cosines:
        votes = np.zeros(10)
        for i in np.argsort(-row, kind="stable")[:k]:
            votes[train_y[i]] += np.exp(row[i] / temperature)
        found.append(votes.argmax())
    return np.array(found)


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A run with probes at steps 8, 16 and 24 of 30 images, interrupted after step 9."""
    workdir = tmp_path_factory.mktemp("runs") / "probed"
    run(workdir, steps=9, probe_every=8, probe_images=30)
    return workdir, run(workdir, probe_every=8, probe_images=30)


def test_probes_change_nothing_of_the_training(probed, tmp_path):
    run(tmp_path / "plain")
    plain, watched = (sparse_vis.load(workdir)[1] for workdir in (tmp_path / "plain", probed[0]))
    jax.tree.map(np.testing.assert_array_equal, watched, plain)
    rows, more = read_metrics(tmp_path / "plain" / "metrics.jsonl"), read_metrics(probed[0] / "metrics.jsonl")
    for name in rows.keys() - CLOCK:
        np.testing.assert_array_equal(more[name], rows[name])
    assert more.keys() - rows.keys() == {"probe/psnr", "probe/knn", "probe/knn_cls"}


def test_a_probe_measures_the_held_out_split(probed):
    workdir, config = probed
    found = read_metrics(workdir / "metrics.jsonl")
    assert found["probe/psnr"][0].tolist() == [8, 16, 24]
    model, params = sparse_vis.load(workdir)
    images, labels, vectors = {}, {}, {}
    for split in ("train", "test"):
        source = build_source(config, split)
        records = [source[i * len(source) // 30] for i in range(30)]
        images[split] = np.stack([record["image"] for record in records])
        labels[split] = np.array([record["label"] for record in records])
        out = sparse_vis.encode(model, params, images[split])
        vectors[split] = np.asarray(out.sparse).mean(axis=1)
    pixels = np.asarray(sparse_vis.reconstruct(model, params, out))
    error = ((pixels - images["test"] / 255) ** 2).mean(axis=(1, 2, 3))
    assert found["probe/psnr"][1][-1] == pytest.approx((-10 * np.log10(error)).mean(), abs=1e-3)
    predicted = nearest(vectors["train"], labels["train"], vectors["test"])
    assert found["probe/knn"][1][-1] == pytest.approx((predicted == labels["test"]).mean())


def test_a_probe_is_a_curve_and_a_picture_in_tensorboard_and_a_png(probed):
    workdir, _ = probed
    events = EventAccumulator(str(workdir / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [e.step for e in events.Scalars("probe/knn")] == [8, 16, 24]
    pictures = events.Images("probe")  # also of the step before the run was continued
    assert [picture.step for picture in pictures] == [8, 16, 24]
    files = sorted((workdir / "probe").iterdir())
    assert [file.name for file in files] == ["step_000008.png", "step_000016.png", "step_000024.png"]
    source = build_source(probed[1], "test")
    with Image.open(files[-1]) as image:
        shown = np.asarray(image)
    # Image, reconstruction and argmax L in a row, four maps below; eight of the 30 images.
    assert shown.shape == (8 * (24 + 18), 3 * 24, 3)
    np.testing.assert_array_equal(shown[:24, :24], source[0]["image"])
    assert (pictures[-1].height, pictures[-1].width) == shown.shape[:2]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("source", "split", "test", "apart"),
    [
        ("scenes", "train", "test", True),
        ("scenes", "train", "train", False),
        ("folder", "train", "test", True),
        ("folder", "", "test", False),  # the folder of all images holds those of the test
        ("folder", "test/cats", "test", False),
        ("folder", "", "", False),
        ("folder", "train", "missing", False),
        ("object", "train", "test", False),
    ],
)
def test_only_what_is_certainly_not_trained_on_is_called_held_out(
    tmp_path, source, split, test, apart, capsys
):
    for name in ("train/cats", "test/cats"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (30, 30)).save(tmp_path / name / "a.png")
    config = default_config()
    config.data.update(source=source, path=str(tmp_path), split=split)
    config.eval.test_split = test
    assert (held_out(config) is not None) == apart
    assert ("is not used" in capsys.readouterr().out) == (test == "missing")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("split", "test", "apart"),
    [
        ("train[:90%]", "validation", True),
        ("train[:90%]", "train[90%:]", False),
        ("train", "train+test", False),
        ("all", "test", False),
        ("", "test", False),
        ("train-{0000..0001}", "train-0001", False),
        ("shard-0*", "shard-00", False),
        ("train", "./train", False),
        ("train", "train2", False),  # of a pattern like tars/{split}*.tar
    ],
)
def test_parts_of_one_split_are_not_certain_to_be_apart(monkeypatch, split, test, apart):
    opened = {test: OwnSource(np.zeros((1, 8, 8, 3), np.uint8))}
    monkeypatch.setattr("sparse_vis.commands.watch.build_source", lambda config, split: opened[split])
    config = default_config()
    config.data.update(source="tfds:imagenet2012", split=split)
    config.eval.test_split = test
    assert held_out(config) is (opened[test] if apart else None)


@pytest.mark.fast
@pytest.mark.parametrize(("count", "knn"), [(1, False), (9, True)])
def test_images_in_memory_are_measured_and_said_to_be_trained_on(capsys, count, knn):
    config = get_config()
    config.data.source = "object"
    source = OwnSource([(np.full((24, 24, 3), i, np.uint8), i % 2) for i in range(count)], classes=("a", "b"))
    watch = Watch(config, None, source)
    kNN = "kNN, " * knn
    assert f"steps: {kNN}PSNR and pictures of {1 + knn} images of the training images, as no split" in (
        capsys.readouterr().out
    )
    assert [image[0, 0, 0] for image in watch.query.image] == [0, 5][: 1 + knn]
    assert [image[0, 0, 0] for image in watch.voters.image] == [1, 2, 3, 4, 6, 7, 8] * knn
