"""A classifier is fitted on labelled images, saved beside its model, found again, and refused for others."""

import json
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from PIL import Image

import sparse_vis
from sparse_vis.commands import extract, probe
from sparse_vis.evals.classes.fitting import held_out
from sparse_vis.models import classifier
from sparse_vis.runtime.errors import UserError
from tests.tiny_checkpoint import SIZE, TOKENS, WIDTH

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (210, 30, 40)}
EACH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of three colours with noise, at the size of the model after its resize and crop."""
    path, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (path / name).mkdir()
        for i in range(EACH):
            pixels = np.clip(colour + rng.normal(0, 20, (37, 37, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path / name / f"{i}.png")
    return path


def crops(folder):
    """The images as the model sees them: the centre 32 pixels of 37; and their classes by name."""
    paths = sorted(folder.rglob("*.png"))
    low = (37 - SIZE) // 2
    pixels = [np.asarray(Image.open(path))[low : low + SIZE, low : low + SIZE] for path in paths]
    return np.stack(pixels), [path.parent.name for path in paths]


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def read(path):
    with safetensors.safe_open(path, framework="np") as file:
        about = json.loads(file.metadata()["sparse_vis.probe"])
    return safetensors.numpy.load_file(path), about


def test_the_command_writes_beside_the_model_what_load_finds(workdir, folder, tmp_path, monkeypatch, capsys):
    workdir = shutil.copytree(workdir, tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["probe", f"--checkpoint={workdir}", f"--input={folder}"])
    probe.main()
    path = workdir / "probe.safetensors"
    said = capsys.readouterr().out
    assert "linear probe on mean_S: 6 of 6 held-out images are right, 100.00% (the" in said
    assert f"wrote {path}; sparse_vis.load('{workdir}') and export find it beside the model\n" in said
    tensors, about = read(path)
    assert about["classes"] == ["blue", "green", "red"] and about["format"] == 1
    assert (about["accuracy"], about["fitted"], about["held_out"]) == (1.0, 18, 6)
    model, params = sparse_vis.load(workdir)
    images, classes = crops(folder)
    S = np.asarray(sparse_vis.encode(model, params, images).sparse)
    expected = softmax(S.mean(axis=1) @ tensors["kernel"] + tensors["bias"])
    names, found = sparse_vis.classify(model, params, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert names == classes
    again, from_folder = sparse_vis.classify(model, params, folder, batch=5)  # reads and crops the files
    assert again == classes
    with pytest.raises(
        UserError, match=r"0\.png is one image; give a list, \['.*0\.png'\], or its folder\.$"
    ):
        sparse_vis.classify(model, params, min(folder.rglob("*.png")))
    np.testing.assert_allclose(from_folder, expected, atol=1e-5)
    # Of another step, whose weights differ: a note, and a model without a classifier.
    other = sparse_vis.load(workdir / "checkpoints" / "3")
    assert (
        "note: " in (out := capsys.readouterr().out) and "was fitted for a model with other parameters" in out
    )
    with pytest.raises(UserError, match="has no classifier; fit one"):
        sparse_vis.classify(*other, images)
    with pytest.raises(UserError, match=r"was fitted for a model with other parameters; fit a probe"):
        sparse_vis.load(workdir / "checkpoints" / "3", probe=path)
    # Elsewhere: the printed call loads it.
    given = [*sys.argv, "--kind=knn", f"--output={tmp_path / 'other'}"]
    monkeypatch.setattr(sys, "argv", [*given, "--seed=-1"])
    with pytest.raises(UserError, match=r"^--seed=-1 is not a whole number of at least 0; give one"):
        probe.main()
    monkeypatch.setattr(sys, "argv", [*given, "--seed=0"])
    probe.main()
    (call,) = re.findall(r"; load it with sparse_vis\.(load\(.*\)), and export", capsys.readouterr().out)
    assert len(eval(call, {"load": sparse_vis.load})[1]["classifier"]["gallery"]) == 18


def test_the_nearest_images_vote(loaded, folder, tmp_path):
    model, params, report = sparse_vis.probe(*loaded, folder, kind="knn", k=5, feature="cls", save=tmp_path)
    assert report["accuracy"] == 1 and report["fitted"] == 18
    images, _ = crops(folder)
    cls = np.asarray(sparse_vis.encode(model, params, images).cls)[:, 0]
    tensors, _ = read(tmp_path / "probe.safetensors")
    assert len(tensors["gallery"]) == 18
    cosine = cls / np.linalg.norm(cls, axis=1, keepdims=True) @ tensors["gallery"].T
    expected = np.zeros((len(images), 3))
    for row, nearest in enumerate(np.argsort(-cosine, axis=1)[:, :5]):
        for i in nearest:
            expected[row, tensors["label"][i]] += np.exp(cosine[row, i] / 0.07)
    expected /= expected.sum(axis=1, keepdims=True)
    found = sparse_vis.classify(model, params, images)[1]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_extraction_gives_the_same_probe_as_its_images(loaded, workdir, folder, tmp_path, monkeypatch):
    flags = ["extract", f"--checkpoint={workdir}", f"--input={folder}", f"--output={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", [*flags, "--shard-size=10"])
    extract.main()
    for name, data in (("images", folder), ("features", tmp_path / "out")):
        sparse_vis.probe(*loaded, data, feature="concat_S", save=tmp_path / f"{name}.safetensors")
    (images, about), (features, same) = (read(tmp_path / f"{n}.safetensors") for n in ("images", "features"))
    assert images["kernel"].shape == (TOKENS * WIDTH, 3) and about["accuracy"] == same["accuracy"]
    np.testing.assert_allclose(images["kernel"], features["kernel"], atol=1e-5)
    monkeypatch.setattr(
        sys, "argv", ["probe", f"--checkpoint={workdir}", f"--input={tmp_path / 'out'}", "--split=test"]
    )
    with pytest.raises(UserError, match=r"the extraction .* is used whole; leave out --split and --data-dir"):
        probe.main()
    with pytest.raises(UserError, match="is of a model with other parameters"):
        sparse_vis.probe(*sparse_vis.load(workdir / "checkpoints" / "3"), tmp_path / "out")


def test_numbers_are_names_and_random_labels_are_not_learnt(loaded, folder, capsys):
    images, classes = crops(folder)
    pairs = [(image, "gbr".index(name[0])) for image, name in zip(images, classes, strict=True)]
    model, params, report = sparse_vis.probe(*loaded, pairs)
    assert model.classifier.classes == ("0", "1", "2") and report["accuracy"] == 1
    assert sparse_vis.classify(model, params, images)[0] == ["012"["gbr".index(n[0])] for n in classes]
    # 96 images of noise with random labels and 128 numbers each: they fit perfectly, and tell nothing.
    rng = np.random.default_rng(1)
    noise = [(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8), i % 2) for i in range(96)]
    *_, report = sparse_vis.probe(*loaded, noise, classes=("a", "b"), feature="concat_S", holdout=0.5)
    assert report["held_out"] == 48 and 0.25 < report["accuracy"] < 0.75
    some = [(image, None if i < 3 else label) for i, (image, label) in enumerate(pairs)]
    assert sparse_vis.probe(*loaded, some)[2]["fitted"] == 4 + 6 + 6  # of 5, 8, 8
    assert "note: 3 images have no class and are left out" in capsys.readouterr().out


class Items:
    """Labelled items that count how often they are read; item 3 cannot be, unless `items` are given."""

    def __init__(self, count, items=None, **attributes):
        self.items, self.read = items or [(np.zeros((9, 9), np.uint8), 0)] * count, [0] * count
        self.bad = None if items else 3
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if index == self.bad:
            raise RuntimeError("db lost\nat line 3")
        self.read[index] += 1
        return self.items[index]


def test_labels_may_be_names_and_items_are_read_twice(loaded, folder, tmp_path):
    paths = sorted(folder.rglob("*.png"))
    names = [path.parent.name for path in paths]
    given = Items(len(paths), list(zip(paths, names, strict=True)))
    numbers = dict(k=np.int64(3), seed=np.int64(1), holdout=np.float32(0.25))  # which JSON does not know
    model, params, report = sparse_vis.probe(*loaded, given, kind="knn", save=tmp_path, **numbers)
    assert model.classifier.classes == ("blue", "green", "red") and report["fitted"] == 18
    assert given.read[1:] == [2] * (len(paths) - 1) and given.read[0] == 3  # the first: when it is opened
    for listed in (paths, np.array(list(map(str, paths)))):
        assert sparse_vis.classify(model, params, listed)[0] == names
    # Classes as an array, in another order than that of the alphabet.
    pairs = [(path, np.str_(name)) for path, name in zip(paths, names, strict=True)]
    classes = ("red", "green", "blue")
    model, params, _ = sparse_vis.probe(*loaded, pairs, kind="knn", classes=np.array(classes))
    assert model.classifier.classes == classes
    assert sparse_vis.classify(model, params, paths[:2])[0] == names[:2] == ["blue", "blue"]


@pytest.mark.fast
def test_what_cannot_be_fitted_is_one_sentence_before_an_image_is_encoded(
    loaded, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(probe, "image_batches", None)  # calling it would be a TypeError
    white = np.full((SIZE, SIZE, 3), 255, np.uint8)
    for data, changes, match in (
        ([white] * 9, {}, r"the 9 images in a list have no classes; a probe needs labelled images"),
        ([(white, 0)] * 9, {}, r"are all of one class \(0\); a probe needs images of 2 or more"),
        ([(white, 0)] * 9 + [(white, 1)], {}, r"have a single image of 1; a class needs two"),
        ([(white, 0), (white, 1)] * 3, {}, r"leave 4 images to fit, and a linear probe needs 6"),
        ([(white, 0), (white, 5)] * 9, {"classes": ["a", "b"]}, r"the label of item 1 of the list .* 0 to 1"),
        ([(white, -2), (white, 0)] * 9, {}, r"the label of item 0 of the list .* is -2; give the number"),
        ([(white, 0.5), (white, 1)] * 9, {}, r"the label of item 0 of the list .* is 0\.5; give the number"),
        ([(white, "cat"), (white, 1)], {}, r"label of item 1 .* is 1, and those of others are names; give"),
        ([(white, "cow")], {"classes": ("cat",)}, r"the label of item 0 of the list .* is 'cow'; give"),
        ([(white, 10**9)] * 9, {}, r"the largest label of the list is 1000000000; give labels that count"),
        ((x for x in [white]), {}, r"a generator is not a data set; give an object with"),
        (Items(1, iloc=0), {}, r"a Items does not give its items by their number; give its \.tolist\(\)"),
        (Items(1, iloc=0, columns=()), {}, r"give list\(zip\(table\[PATHS\], table\[LABELS\]\)\)"),
        (Items(9), {}, r"item 3 of the Items .* cannot be read \(RuntimeError: db lost\); correct its __get"),
        (tmp_path / "missing", {}, r"^folder '.*missing' does not exist; give the folder of your images\.$"),
        (tmp_path, {}, r"holds no image .*; put images there or correct the path\.$"),
        ("tfds:mnist", {}, r"tfds:mnist needs a split: give the object tfds\.data_source"),
        (folder, {"classes": "ab"}, r"for pairs and objects, and images in .* \(blue, green, red\); leave"),
    ):
        with pytest.raises(UserError, match=match) as error:
            sparse_vis.probe(*loaded, data, **changes)
        assert "--" not in str(error.value)
    (tmp_path / "file").touch()
    safetensors.numpy.save_file({"a": np.ones(1)}, tmp_path / "model.safetensors")
    for changes, match in (
        ({"kind": "tree"}, r"kind='tree' is unknown; choose from linear, knn"),
        ({"feature": "S"}, r"feature='S' is unknown; choose from mean_S, cls, concat_S"),
        ({"holdout": 1.0}, r"holdout=1\.0 is not a number between 0 and 1"),
        ({"holdout": "a"}, r"holdout='a' is not a number between 0 and 1"),
        ({"k": 2.5}, r"k=2\.5 is not a whole number of at least 1; give one"),
        ({"seed": 1.5}, r"seed=1\.5 is not a whole number of at least 0"),
        ({"batch": 0}, r"batch=0 is not a whole number of at least 1"),
        ({"save": tmp_path / "file" / "a"}, r"save=.*/file/a cannot be written \(.*/file is a file\)"),
        ({"save": tmp_path / "model.safetensors"}, r"save=.* holds other tensors, not a probe; give another"),
        ({"save": 5}, r"^save is a int, not a path; give one\."),
        ({"classes": "ab"}, r"classes='ab' is a str; give a list of the classes' names"),
        ({"classes": {"a", "b"}}, r"classes=\{.*\} is a set; give a list"),
        ({"classes": 2}, r"classes=2 is a int; give a list"),
        ({"classes": ()}, r"classes is empty; give the names"),
        ({"classes": ("a", "a")}, r"classes has the name 'a' twice; give every class its own"),
        ({"classes": [["a", "b"]]}, r"classes has \['a', 'b'\], a list; give names"),
    ):
        with pytest.raises(UserError, match=match):
            sparse_vis.probe(*loaded, [(white, 0), (white, 1)] * 9, **changes)
    with pytest.raises(UserError, match=r"^probe\(model, params, data\) got a dict as model and a Stel"):
        sparse_vis.probe(*loaded[::-1], [(white, 0)])
    with pytest.raises(UserError, match=r"has a \{split\}; write the split itself in its place\.$"):
        sparse_vis.probe(*loaded, "webdataset:a-{split}.tar")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"the extraction .* is not complete; repeat the command"):
        sparse_vis.probe(*loaded, tmp_path)
    with pytest.raises(UserError, match=r"classes= is not for the extraction .*, which has its own; leave"):
        sparse_vis.probe(*loaded, tmp_path, classes=("a", "b"))


def test_an_image_that_cannot_be_used_stops_or_is_left_out(loaded, folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "images")
    (tmp_path / "images" / "red" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"red/0\.png.*, or pass on_error='skip'\.$"):
        sparse_vis.probe(*loaded, tmp_path / "images")
    model, params, report = sparse_vis.probe(*loaded, tmp_path / "images", on_error="skip")
    assert report["fitted"] + report["held_out"] == 3 * EACH - 1
    assert "note: 1 images cannot be used" in capsys.readouterr().out
    # Items that raise, when they are read for their labels.
    paths = sorted(folder.rglob("*.png"))
    pairs = Items(len(paths), [(path, path.parent.name) for path in paths], bad=5)
    with pytest.raises(UserError, match=r"^item 5 .* which raised this, or pass on_error='skip'\.$"):
        sparse_vis.probe(*loaded, pairs, kind="knn")
    *_, report = sparse_vis.probe(*loaded, pairs, kind="knn", on_error="skip")
    assert report["fitted"] + report["held_out"] == 3 * EACH - 1
    assert "note: 1 items cannot be read; the first: item 5 of" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"red/0\.png") as error:  # an answer for every image, or none
        sparse_vis.classify(model, params, tmp_path / "images")
    assert "skip" not in str(error.value)


@pytest.mark.fast
def test_held_out_rows_are_of_every_class_and_never_all():
    y = np.array([0] * 10 + [1] * 2 + [2] * 5)
    fitted, held = held_out(y, 0.3, seed=0)
    assert sorted([*fitted, *held]) == list(range(17))
    assert np.bincount(y[held]).tolist() == [3, 1, 2]  # round(1.5) is 2
    assert np.bincount(y[held_out(y, 0.99, seed=0)[0]]).tolist() == [1, 1, 1]


@pytest.mark.fast
def test_damage_and_later_formats_are_refused(workdir, loaded, tmp_path):
    head = classifier.LinearClassifier(("a", "b"), "mean_S", WIDTH)
    tensors = {"kernel": np.ones((WIDTH, 2), np.float32), "bias": np.zeros(2, np.float32)}
    about = {"weights_crc32": probe.probe_file.weights_of(loaded[1])}
    path = tmp_path / "probe.safetensors"
    probe.probe_file.write_probe(path, head, tensors, about)
    assert sparse_vis.load(workdir, probe=tmp_path)[0].classifier == head
    whole = path.read_bytes()
    for broken, match in (
        (
            whole.replace(b'\\"mean_S\\"', b'\\"mean_T\\"'),
            r"is damaged \(its description has another checksum",
        ),
        (whole[:-1] + b"\1", "the checksum of kernel does not match"),
    ):
        assert broken != whole
        path.write_bytes(broken)
        with pytest.raises(UserError, match=match):
            sparse_vis.load(workdir, probe=path)
    probe.probe_file.write_probe(path, head, tensors, about | {"finetuned": True})  # as `export` writes it
    with pytest.raises(UserError, match=r"^save=.* holds the classifier of a fine-tuning; give another save"):
        probe.probe_file.place_to_write(tmp_path, "save")
    probe.probe_file.write_probe(path, head, tensors, about | {"format": 2})
    assert probe.probe_file.place_to_write(tmp_path, "save") == path
    with pytest.raises(
        UserError, match=r"probe\.safetensors has format 2, but this version reads format 1; use the version"
    ):
        sparse_vis.load(workdir, probe=path)
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(UserError, match="holds no probe; give a file that"):
        sparse_vis.load(workdir, probe=path)
    with pytest.raises(UserError, match=r"missing/probe\.safetensors is not a file"):
        sparse_vis.load(workdir, probe=tmp_path / "missing")


def test_the_documented_command_and_code(workdir, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(folder)
    shutil.copytree(workdir, tmp_path / "runs" / "quickstart")
    np.save("images.npy", crops(folder)[0])
    text = (pathlib.Path(__file__).parents[2] / "docs" / "classifiers.md").read_text()
    (command,) = re.findall(r"^python -m sparse_vis (probe .*)$", text, re.M)
    monkeypatch.setattr(sys, "argv", command.split())
    probe.main()
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(code, scope)
    assert scope["names"] == crops(folder)[1] and scope["report"]["fitted"] == 18
    assert read("runs/quickstart/probe.safetensors")[1]["kind"] == "knn"  # of the second snippet
