"""Tasks on made-up images with made-up encoders, where the right answer is known."""

import dataclasses
import errno
import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sparse_vis.config.defaults import default_config
from sparse_vis.data.decode import to_square
from sparse_vis.data.sources import FolderSource
from sparse_vis.evals.classes.linear import SweepProtocol
from sparse_vis.evals.columns import CONCATENATED, TOKEN_MEANS
from sparse_vis.evals.dataset import Data, Part, without_unlabelled
from sparse_vis.evals.factors import factorization, rate
from sparse_vis.evals.features import Encoder, as_unit, patches_of
from sparse_vis.evals.maps import segmentation
from sparse_vis.evals.maps.label_maps import centre_square, check_maps, label_map
from sparse_vis.evals.maps.published_images import random_cuts
from sparse_vis.evals.pixels.networks import Networks
from sparse_vis.evals.pixels.psnr_ssim import psnr
from sparse_vis.evals.task import Bench
from sparse_vis.evals.tasks import TASKS
from sparse_vis.runtime.errors import UserError
from tests.evals.pictures import Pictures

SIZE, PATCH, GRID = 32, 8, (4, 4)
PALETTE = np.float32([[0.1, 0.1, 0.9], [0.1, 0.9, 0.1], [0.9, 0.1, 0.1]])


def mosaics(count, seed, side=SIZE):
    """Images of patches in the palette's colours, large areas of each; and the colour of every patch."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 3, (count, 2, 2)).repeat(2, axis=1).repeat(2, axis=2)
    pixels = PALETTE[which].repeat(side // 4, axis=1).repeat(side // 4, axis=2)
    return np.uint8(np.rint(255 * pixels)), which


def nearest_colour(images):
    """L: which of the palette's colours every patch has on average, one-hot."""
    means = patches_of(images, PATCH).reshape(len(images), 16, -1, 3).mean(2)
    closest = np.linalg.norm(means[:, :, None] - PALETTE, axis=-1).argmin(-1)
    return np.eye(3, dtype=np.float32)[closest]


def ideal():
    """An encoder that factorizes mosaics perfectly: S the palette, L where each colour is."""

    def features(images, wanted):
        L = nearest_colour(images)
        S = np.broadcast_to(PALETTE, (len(images), 3, 3))
        found = {"sparse": S, "spatial": L, "dense": L @ S}
        return {key: found[key] for key in wanted}

    def decode(S, L):
        colours = (L @ S).reshape(-1, 4, 4, 3)
        return np.clip(colours.repeat(PATCH, axis=1).repeat(PATCH, axis=2), 0, 1)

    return Encoder("ideal", ("sparse", "spatial", "dense"), features, decode)


def bench_of(encoder, train, test, *, masks=None, classes=0):
    parts = {
        name: Part(source, np.arange(len(source)), SIZE, SIZE, 1, masks, classes)
        for name, source in (("train", train), ("test", test))
    }
    count = 3 if train[0].get("label") is not None else 0
    data = Data(parts, ("train", "test"), count, {})
    return Bench(encoder, data, Networks("", "", "", 4), 8, 0, {"train": set(), "test": set()})


def test_columns_too_large_for_memory_are_a_file_that_goes_with_them(tmp_path, monkeypatch):
    images, which = mosaics(20, 0)
    source = Pictures(images, which[:, 0, 0])

    def columns(folder):
        bench = bench_of(ideal(), source, source)
        reducers = {"train": {*TOKEN_MEANS, CONCATENATED}, "test": set()}
        return dataclasses.replace(bench, reducers=reducers, folder=folder).columns("train")

    expected = columns(tmp_path)
    assert not any(isinstance(array, np.memmap) for array in expected.values())
    monkeypatch.setattr("sparse_vis.evals.task.IN_MEMORY", 100)
    found = columns(tmp_path)
    assert {name for name, array in found.items() if isinstance(array, np.memmap)} == {
        "mean_S", "mean_U", "concat_S",
    }  # fmt: skip
    assert found.keys() == expected.keys() and not [*tmp_path.iterdir()]
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    rows, labels = without_unlabelled(found, ["concat_S"])
    assert np.shares_memory(rows["concat_S"], found["concat_S"]) and len(labels) == 20

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        columns(tmp_path)


def test_factorization_of_an_encoder_that_factorizes():
    images, which = mosaics(40, 0)
    labels = which[:, 0, 0]  # the colour of a corner: L knows it
    bench = bench_of(ideal(), Pictures(images, labels), Pictures(*(a[:16] for a in (images, labels))))
    found = factorization.FACTORIZATION.measure(bench, default_config())
    values = {name: (m["value"], m["compared_with"]) for name, m in found.metrics.items()}
    assert found.absent == {}
    assert values["S of a view"] == pytest.approx((1, 1))
    assert values["L of a view"][0] > 0.9 > 0.8 > values["L of a view"][1]
    assert values["L of a view, other crop"][1] < 0.85
    assert abs(values["position in S (R2)"][0]) < 0.05  # S is the same everywhere
    assert values["class in L"][0] == 1 > values["class in L"][1]
    # Not 1: where the map left, the others share evenly, and one-hot maps cannot show that.
    assert values["L after a moved map"][0] > 0.9 > 0.85 > values["L after a moved map"][1]
    # This encoder's S is the palette whatever it sees: a swapped token (by its own copy) changes nothing.
    assert values["S after a swapped token"] == pytest.approx((1, 1))


def test_a_swapped_token_is_found_again_by_an_encoder_that_looks():
    images, _ = mosaics(6, 3)
    shade = np.linspace(0.5, 1, 6, dtype=np.float32)[:, None, None, None]
    images = np.uint8(images * shade)  # every image has its own shade, which its S tells

    def features(x, wanted):
        # Token 0 holds the colour of the upper half, token 1 of the lower half.
        halves = as_unit(x).reshape(len(x), 2, -1, 3).mean(2)
        L = np.zeros((len(x), 16, 2), np.float32)
        L[:, :8, 0] = L[:, 8:, 1] = 1
        return {key: {"sparse": halves, "spatial": L, "dense": L @ halves}[key] for key in wanted}

    def decode(S, L):
        return (L @ S).reshape(-1, 4, 4, 3).repeat(PATCH, axis=1).repeat(PATCH, axis=2)

    encoder = Encoder("halves", ("sparse", "spatial", "dense"), features, decode)
    found = factorization.FACTORIZATION.measure(
        bench_of(encoder, Pictures(images), Pictures(images)), default_config()
    )
    swap = found.metrics["S after a swapped token"]
    assert swap["value"] == pytest.approx(1, abs=1e-3) and swap["compared_with"] < 0.99
    assert found.metrics["position in S (R2)"]["value"] == 0, "L is the same everywhere: nothing to read"
    assert found.absent == {"class in L": "its images do not have one class each"}


def test_rate_of_an_encoder_that_factorizes():
    images, which = mosaics(60, 1)
    parts = [Pictures(images[:40], which[:40, 0, 0]), Pictures(images[40:], which[40:, 0, 0])]
    found = rate.RATE.measure(bench_of(ideal(), *parts), default_config())
    rows = found.metrics
    assert list(rows) == ["float32", "float16", "int8", "int8, top 2", "int8, top 1", "U, float32"]
    assert rows["float32"]["bytes"] == 4 * (3 * 3 + 16 * 3) and rows["int8, top 1"]["bytes"] == 15 + 32
    assert rows["U, float32"]["U_bytes"] == 4 * 16 * 3
    assert rows["float32"]["psnr"] > 50 and rows["int8, top 1"]["psnr"] > 40  # one colour a patch is enough
    assert all(row["U_bytes"] <= row["bytes"] for row in rows.values() if {"U_bytes", "bytes"} <= row.keys())
    assert "U_bytes" not in rows["int8, top 1"]  # 47 bytes hold no component of 16 patches with their scales
    # The mean of S is the same for all images, the mean of U is the mix of colours.
    assert rows["float32"]["accuracy"] < 0.6 <= rows["float32"]["U_accuracy"] + 0.2


@pytest.mark.fast
def test_the_linear_decoder_by_hand():
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8) for n in (60, 20))
    pixels = [patches_of(images, 8) for images in (train, test)]
    perfect = rate.linear_psnr(pixels[0], train, pixels[1], test)
    assert perfect > 45
    nothing = [np.ones((len(x), 4, 1), np.float32) for x in (train, test)]
    mean = pixels[0].reshape(-1, 192).mean(0)
    guess = (
        np.broadcast_to(mean.reshape(8, 8, 3), (2, 2, 8, 8, 3)).transpose(0, 2, 1, 3, 4).reshape(16, 16, 3)
    )
    expected = psnr(np.broadcast_to(guess, test.shape), as_unit(test)).mean()
    assert rate.linear_psnr(nothing[0], train, nothing[1], test) == pytest.approx(expected, abs=1e-3)


def write_folder(folder, count, seed):
    """Pictures of 60x40 with one colour per 20-pixel square, and their maps beside them, in subfolders."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        which = rng.integers(0, 3, (2, 3)).astype(np.uint8).repeat(20, axis=0).repeat(20, axis=1)
        which[0, 0] = 255
        for kind, array in (("images", np.uint8(255 * PALETTE)[which % 3]), ("maps", which)):
            path = folder / kind / "class" / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(array)
            if kind == "maps" and i % 2:  # as a palette file, as PASCAL's are
                image = Image.fromarray(array, mode="P")
                image.putpalette(list(range(256)) * 3)
            image.save(path)
    return FolderSource(str(folder / "images"))


def test_segmentation_from_colours(tmp_path, monkeypatch):
    for name in ("PUBLISHED", "LINEAR"):  # a few steps at a larger rate
        quick = dataclasses.replace(getattr(segmentation, name), learning_rate=0.05)
        monkeypatch.setattr(segmentation, name, quick)
    source = write_folder(tmp_path, 12, 0)

    def colours(images, wanted):
        return {"dense": patches_of(images, 2).reshape(len(images), 256, -1, 3).mean(2)}

    def blind(images, wanted):
        return {"dense": np.ones((len(images), 256, 3), np.float32)}

    config = default_config()
    config.eval.segmentation.update(batch=4, epochs=15)
    found = {}
    for name, features in (("colours", colours), ("blind", blind)):
        encoder = Encoder(name, ("dense",), features)
        bench = bench_of(encoder, source, source, masks=tmp_path / "maps", classes=3)
        found[name] = segmentation.SEGMENTATION.measure(bench, config)
    assert list(found["colours"].metrics) == ["U, published", "U, linear"]
    scores = {name: result.metrics["U, published"]["miou"] for name, result in found.items()}
    assert scores["colours"] > 0.8 and scores["blind"] < 0.3
    assert len(found["colours"].details["U, linear"]["iou"]) == 3
    assert set(found["colours"].metrics["U, published"]) == {"macro_jaccard", "accuracy", "miou"}
    assert set(found["colours"].metrics["U, linear"]) == {"miou"}
    score = {name: result.metrics["U, published"]["macro_jaccard"] for name, result in found.items()}
    assert score["colours"] > 0.9 and score["blind"] < 0.3  # at the patches, no border is interpolated


def test_one_token_for_the_whole_image_has_no_place(tmp_path):
    source = write_folder(tmp_path, 3, 1)
    encoder = Encoder("pixels", ("dense",), lambda x, wanted: {"dense": as_unit(x).reshape(len(x), 1, -1)})
    bench = bench_of(encoder, source, source, masks=tmp_path / "maps", classes=3)
    for name in ("segmentation", "reconstruction_probe"):
        found = TASKS[name].measure(bench, default_config())
        assert found.metrics == {} and found.absent == {name: "it has one token for the whole image"}


@pytest.mark.fast
def test_maps_are_read_cut_and_checked(tmp_path):
    source = write_folder(tmp_path, 3, 2)
    part = Part(source, np.arange(3), SIZE, SIZE, 1, tmp_path / "maps", 3)
    check_maps(part)
    maps = [label_map(part, source[i]) for i in range(3)]
    assert all(m.shape == (40, 60) and set(np.unique(m)) <= {0, 1, 2, 255} for m in maps)
    small = Part(source, np.arange(3), SIZE, SIZE, 1, tmp_path / "maps", 1)
    with pytest.raises(UserError, match=r"00\.png has class 2, but config\.eval\.mask_classes=1; raise it"):
        label_map(small, source[0])
    Image.fromarray(maps[0][:20]).save(tmp_path / "maps" / "class" / "00.png")
    with pytest.raises(UserError, match=r"00\.png is uint8 of shape \(20, 60\).*image's size \(40, 60\)"):
        check_maps(part)
    Image.fromarray(maps[0]).save(tmp_path / "maps" / "class" / "00.png")
    (tmp_path / "maps" / "class" / "02.png").unlink()
    with pytest.raises(UserError, match=r"label map .*02\.png is missing; config\.eval\.masks"):
        check_maps(part)


@pytest.mark.fast
@pytest.mark.parametrize("shape", [(50, 80), (81, 47), (64, 64)])
def test_a_map_is_cut_where_the_image_is(shape):
    """Of a map whose values are places, the cut at full resolution shows what the encoder's square shows."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.uint8)
    for places in (rows, columns):
        seen = to_square(places, 28, short_side=32, resample=Image.Resampling.NEAREST).astype(float)
        cut = centre_square(places, size=28, short_side=32)
        assert cut.shape[0] == cut.shape[1] == round(28 * min(shape) / 32)
        pixel = min(shape) / 32
        assert abs(seen.min() - cut.min()) <= pixel + 1 and abs(seen.max() - cut.max()) <= pixel + 1


@pytest.mark.fast
def test_training_crops_keep_image_and_map_together():
    rng = np.random.default_rng(0)
    which = rng.integers(0, 3, (3, 4)).astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    image, make = np.uint8(255 * PALETTE)[which], random_cuts(28, (0.25, 1.0), 0, 0)
    for number in range(20):
        cut = make(*which.shape, number)
        colour = np.linalg.norm(cut.image(image)[:, :, None] - PALETTE, axis=-1).argmin(-1)
        assert (colour == cut.labels(which)).mean() > 0.85  # all but borders, which bicubic mixes


@pytest.mark.fast
def test_shifted_maps(tmp_path):
    """ADE20K's and VOC's: 0 becomes 255, 255 stays, the others count from 0."""
    source = write_folder(tmp_path, 1, 2)
    values = np.zeros((40, 60), np.uint8)
    values[0, :5] = [0, 1, 2, 150, 255]
    Image.fromarray(values).save(tmp_path / "maps" / "class" / "00.png")
    part = Part(source, np.arange(1), SIZE, SIZE, 1, tmp_path / "maps", 150, map_shift=-1)
    assert label_map(part, source[0])[0, :6].tolist() == [255, 0, 1, 149, 255, 255]
    small = dataclasses.replace(part, map_classes=149)
    with pytest.raises(UserError, match=r"has class 149, shifted by -1, but config\.eval\.mask_classes=149"):
        label_map(small, source[0])


@pytest.mark.fast
def test_scenes_have_maps_of_classes():
    record = {"mask": np.array([[0, 1], [2, 0]], np.uint8), "labels": np.array([7, 0, -1, -1], np.int32)}
    part = Part(Pictures(np.zeros((1, 2, 2, 3), np.uint8)), np.arange(1), 2, 2, 1, None, 11)
    np.testing.assert_array_equal(label_map(part, record), [[0, 8], [1, 0]])


@pytest.mark.fast
def test_every_task_has_a_protocol_of_plain_values(tmp_path):
    config = default_config()
    for name, task in TASKS.items():
        assert isinstance(task.protocol(config), dict), name
        assert task.reads and not isinstance(task.protocol(config), ConfigDict)


def test_all_tasks_share_one_pass_that_computes_what_they_need(capsys):
    images, which = mosaics(20, 5)
    calls = []

    def features(x, wanted):
        calls.append((len(x), wanted))
        return {"dense": patches_of(x, PATCH), "cls": as_unit(x).mean((1, 2))[:, None]}

    source = Pictures(images, which[:, 0, 0])
    bench = bench_of(Encoder("e", ("dense", "cls", "prototype"), features), source, source)
    for name in ("knn", "retrieval", "linear", "reconstruction"):
        for part, kept in TASKS[name].reducers(bench.data).items():
            bench.reducers[part].update(kept)
    for name in ("knn", "retrieval", "linear"):
        TASKS[name].measure(bench, default_config())
    assert calls == [(8, ("cls", "dense"))] * 3 + [(8, ("cls", "dense"))] * 3  # train and test, once each
    columns = bench.columns("train")
    assert set(columns) == {"label", "cls", "mean_U"}
    np.testing.assert_allclose(columns["mean_U"], patches_of(images, PATCH).mean(1), rtol=1e-5)
    np.testing.assert_array_equal(columns["label"], which[:, 0, 0])
    printed = capsys.readouterr().out.splitlines()
    expected = [f"e: {part} images: 20/20 images" for part in ("train", "test")]
    steps, batch = SweepProtocol().steps, 18  # two of the 20 are held out
    expected.append(f"linear probes: {steps * batch}/{steps * batch} rows")
    assert [line.split("  ")[0] for line in printed] == expected
    assert "images/s  ETA 0:00:00" in printed[0]
