import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sparse_vis.data.decode import decode
from sparse_vis.data.records import read_records
from sparse_vis.data.scenes import SceneSpec
from sparse_vis.data.sources import announce, make_source, open_input
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.paths import as_path
from sparse_vis.runtime.progress import say_once

SMALL = SceneSpec(size=32, eval_records=40)


def write(path, value=0, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)


def folder(path, split=""):
    return make_source("folder", split=split, path=str(path), seed=0, scenes=SMALL)


@pytest.mark.fast
def test_folder_lists_images_sorted_with_labels_from_subfolders(tmp_path):
    for name in ("b/z.png", "b/deep/er/y.JPG", "a/x.jpeg", "c/w.webp", "top.png"):
        write(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "d").mkdir()
    write(tmp_path / ".hidden" / "h.png")
    write(tmp_path / "a" / "._x.png")
    found = folder(tmp_path)
    assert [found[i]["name"] for i in range(len(found))] == sorted(
        ["a/x.jpeg", "b/deep/er/y.JPG", "b/z.png", "c/w.webp", "top.png"]
    )
    assert found.classes == ("a", "b", "c")
    assert [found[i]["label"] for i in range(5)] == [0, 1, 1, 2, -1]
    assert found[0]["image"] == (tmp_path / "a/x.jpeg").read_bytes()
    assert repr(found) == repr(folder(tmp_path))


@pytest.mark.fast
def test_flat_folder_has_no_labels_and_split_is_a_subfolder(tmp_path):
    write(tmp_path / "train" / "a.png")
    write(tmp_path / "val" / "b.png")
    found = folder(tmp_path, split="val")
    assert len(found) == 1 and found[0]["name"] == "b.png"
    assert found.classes == () and "label" not in found[0]


@pytest.mark.fast
def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "elsewhere" / "b.png")
    write(tmp_path / "data" / "a" / "a.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "b")
    os.symlink(tmp_path / "data", tmp_path / "data" / "a" / "loop")
    assert folder(tmp_path / "data").names == ["a/a.png", "b/b.png"]


@pytest.mark.fast
def test_a_second_link_to_a_folder_is_a_class_of_its_own_and_said(tmp_path, capsys):
    write(tmp_path / "elsewhere" / "more" / "x.png")
    for name in ("a", "b"):
        (tmp_path / "data").mkdir(exist_ok=True)
        os.symlink(tmp_path / "elsewhere", tmp_path / "data" / name)
    os.symlink(tmp_path / "data" / "gone", tmp_path / "data" / "c")  # to nothing
    os.symlink("d", tmp_path / "data" / "d")  # to itself
    found = folder(tmp_path / "data")
    assert found.names == ["a/more/x.png", "b/more/x.png"] and found.classes == ("a", "b")
    place = tmp_path / "data"
    said_once = "are links to the same folder, so its images are used 2 times, once under each name"
    assert said(found, capsys) == [  # nothing of a/more and b/more
        f"2 images in {place}, 2 classes, named by its subfolders (a, b); skipped: 2 without extension",
        f"note: 'a' and 'b' in {place} {said_once}",
    ]
    (place / "a" / "back").symlink_to(place)
    again = said(folder(place), capsys)
    assert again[0].endswith("skipped: 2 without extension, 2 link to one of its parent folders")


def said(source, capsys):
    say_once.cache_clear()
    announce(source)
    announce(source)
    return capsys.readouterr().out.splitlines()


@pytest.mark.fast
def test_what_is_read_and_what_is_left_out_is_said_once(tmp_path, capsys):
    for name in ("a.jpg", "a.jfif", "a.TIF", "a.tiff", "a.bmp", "a.gif", "a.jpeg", "a.webp", "a.png"):
        write(tmp_path / "cat" / name)
        assert (np.asarray(Image.open(tmp_path / "cat" / name)) == 0).all()
    for name in ("cat/x.heic", "y.heic", "notes.txt", ".DS_Store", "Makefile"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "folder.jpg").mkdir()  # an empty folder, whatever it is called
    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would wait for ever
    left = "skipped: 2 .heic, 1 .jpg, 1 .txt, 1 hidden, 1 without extension"
    line, note = said(folder(tmp_path), capsys)
    head, _, tail = line.partition("; skipped: ")
    assert head == f"9 images in {tmp_path}, 1 class, named by its subfolders (cat)"
    assert set(tail.split(", ")) == set(left.removeprefix("skipped: ").split(", "))
    assert note.startswith("note: cat is the only class")
    (tmp_path / "flat").mkdir()
    (tmp_path / "cat" / "a.jpg").rename(tmp_path / "flat" / "a.jpg")
    assert said(folder(tmp_path / "flat"), capsys) == [f"1 image in {tmp_path / 'flat'}, no classes"]


@pytest.mark.fast
def test_splits_taken_for_classes_are_told(tmp_path, capsys):
    for split in ("test", "train"):
        write(tmp_path / split / "cat" / "a.png")
    line, note = said(folder(tmp_path), capsys)
    assert line == f"2 images in {tmp_path}, 2 classes, named by its subfolders (test, train)"
    assert note.startswith(
        "note: the subfolders test, train are used as classes, but their names look like splits"
    )
    assert "--config.data.split=train" in note and f"--input={tmp_path}/train" in note
    assert said(folder(tmp_path, "train"), capsys)[0].endswith("1 class, named by its subfolders (cat)")


@pytest.mark.fast
def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write(tmp_path / "cat" / "a.png")
    (tmp_path / "dog").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"/dog' cannot be listed \(Permission denied\).*--input") as error:
        open_input(str(tmp_path))
    assert "config" not in str(error.value)


@pytest.mark.fast
def test_the_limit_on_pixels_travels_with_the_records(tmp_path):
    write(tmp_path / "a.png", size=(12, 10))
    for limit, fits in ((119, False), (120, True)):
        source = make_source("folder", split="", path=str(tmp_path), seed=0, scenes=SMALL, max_pixels=limit)
        if fits:
            assert read_records(source, [0], size=8, short_side=8).image.shape == (1, 8, 8, 3)
            continue
        with pytest.raises(UserError, match=r"'a\.png' has 120 pixels, more than the limit of 119"):
            read_records(source, [0], size=8, short_side=8)


class Own:
    """A source of one's own: records that are kept, with further keys; not all of them have labels."""

    classes = ("a", "b")

    def __init__(self):
        image = np.full((9, 20, 3), 7, np.uint8)
        self.records = [
            {"image": image, "name": "0", "caption": "zero", "label": 1, "mask": image[..., 0]},
            {"image": image, "name": "1", "mask": image[..., 0], "labels": np.array([1, 0], np.int32)},
        ]

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


@pytest.mark.fast
def test_records_of_ones_own_source_are_left_as_they_are():
    source = Own()
    before = [dict(record) for record in source.records]
    for _ in range(2):
        read = read_records(source, [0, 1], size=8, short_side=8)
        assert read.image.shape == (2, 8, 8, 3) and read.mask.shape == (2, 8, 8)
        assert read.label.tolist() == [1, -1] and read.labels.tolist() == [[-1, -1], [1, 0]]
    for now, then in zip(source.records, before, strict=True):
        assert now.keys() == then.keys() and all(now[key] is then[key] for key in then)


@pytest.mark.fast
def test_missing_empty_and_unreadable_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"/gone' does not exist; give --config.data.path"):
        folder(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no image"):
        folder(tmp_path)
    with pytest.raises(
        UserError, match=r"^config\.data\.path is not set; give --config\.data\.path=FOLDER\.$"
    ):
        folder("", split="train")
    (tmp_path / "readme.txt").write_text("no image")
    with pytest.raises(UserError, match=r"readme\.txt' is a file; give --config\.data\.path the folder"):
        folder(tmp_path / "readme.txt")
    (tmp_path / "more.tar").touch()
    with pytest.raises(
        UserError, match=r"folder of your images, or read it with --input=webdataset:/.*/more\.tar\.$"
    ):
        open_input(f"{tmp_path}/more.tar")
    (tmp_path / "more.tar").unlink()
    with pytest.raises(UserError, match="holds no image"):
        folder(tmp_path)
    (tmp_path / "a.heic").write_text("")
    with pytest.raises(UserError, match=r"holds no image \(.*; skipped: 1 \.txt, 1 \.heic; put images there"):
        folder(tmp_path)
    write(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    found = folder(tmp_path)
    (tmp_path / "a.png").unlink()  # while it is read
    with pytest.raises(UserError, match=r"cannot read 'a\.png' \(No such file.*restore the file"):
        found[0]
    with pytest.raises(UserError, match=r"cannot decode 'b\.png' \(it is empty\)"):
        decode(found[1])


@pytest.mark.fast
def test_unknown_source_offers_the_known_ones():
    with pytest.raises(UserError, match=r"'imagenet'.*'scenes', 'pictures', 'folder', .*'tfds:"):
        make_source("imagenet", split="train", path="", seed=0, scenes=SMALL)


@pytest.mark.fast
def test_read_records_of_scenes_are_the_records():
    found = make_source("scenes", split="test", path="", seed=3, scenes=SMALL)
    read = read_records(found, range(5, 9), size=32, short_side=32)
    assert read.image.shape == (4, 32, 32, 3) and read.labels.shape == (4, 4)
    for row, index in enumerate(range(5, 9)):
        np.testing.assert_array_equal(read.image[row], found[index]["image"])
        np.testing.assert_array_equal(read.mask[row], found[index]["mask"])
        assert read.label[row] == found[index]["label"] and read.name[row] == found[index]["name"]
    with pytest.raises(UserError, match="40"):
        read_records(found, range(41), size=32, short_side=32)
    with pytest.raises(UserError, match="short side \(16 px\)"):
        read_records(found, range(4), size=32, short_side=16)


@pytest.mark.fast
def test_read_records_of_a_folder_resizes_the_short_side(tmp_path):
    write(tmp_path / "a.png", 50, size=(40, 20))
    write(tmp_path / "b.png", 90, size=(15, 35))
    read = read_records(folder(tmp_path), range(2), size=16, short_side=18)
    assert read.image.shape == (2, 16, 16, 3) and read.label is None and read.mask is None
    assert (read.image[0] == 50).all() and (read.image[1] == 90).all()


# Run by a Python that finds no TensorFlow, as on the machines that only train.
TFDS = """
import io, json, sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "tensorflow" else super().find_spec(name, path, target)
sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sparse_vis.data.decode import decode
from sparse_vis.data.records import read_records
from sparse_vis.data.scenes import SceneSpec
from sparse_vis.data.sources import make_source

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3)), **self.classes()}))
    def classes(self):
        return {"label": tfds.features.ClassLabel(names=["even", "odd"])}
    def of(self, i):
        return {"label": i % 2}
    def _split_generators(self, manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i in range(10):
            file = io.BytesIO()
            Image.fromarray(np.full((20, 30, 3), i, np.uint8)).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, **self.of(i)}

class Sets(Tiny):
    VERSION = tfds.core.Version("1.0.0")
    def classes(self):
        return {"labels": tfds.features.Sequence(tfds.features.ClassLabel(names=["a", "b", "c"]))}
    def of(self, i):
        return {"labels": list(range(i % 4))}

directory = sys.argv[1]
Tiny(data_dir=directory, file_format="array_record").download_and_prepare()
rows = {}
for split in ("train[:60%]", "train[60%:]"):
    source = make_source("tfds:tiny", split=split, path=directory, seed=0, scenes=SceneSpec())
    records = [source[i] for i in range(len(source))]
    rows[split] = [(int(decode(r).mean()), decode(r).shape, r["label"], r["name"]) for r in records]
Sets(data_dir=directory, file_format="array_record").download_and_prepare()
sets = make_source("tfds:sets", split="train", path=directory, seed=0, scenes=SceneSpec())
both = read_records(sets, range(10), size=8, short_side=8)
found = [both.label is None, both.image[:, 0, 0, 0].tolist(), both.labels.tolist(), sets.classes]
print(json.dumps([rows, source.classes, repr(source), "tensorflow" in sys.modules, found]))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    script = path / "build_tiny.py"
    script.write_text(TFDS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), *sys.path])}
    command = [sys.executable, "-c", "import build_tiny", str(path / "data")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return path / "data", json.loads(done.stdout.splitlines()[-1])


def test_tfds_reads_array_record_without_tensorflow(tiny):
    _, (rows, classes, name, tensorflow, _) = tiny
    assert [len(rows[split]) for split in rows] == [6, 4]
    every = [row for split in rows.values() for row in split]
    assert sorted(row[0] for row in every) == list(range(10))
    assert all(row[1] == [20, 30, 3] and row[2] == row[0] % 2 for row in every)
    assert len({row[3] for row in every}) == 10
    assert classes == ["even", "odd"] and "tiny" in name and not tensorflow


def test_tfds_from_a_bucket_gives_the_same_records(tiny, bucket):
    directory, there = tiny[0], as_path("gs://bucket/tfds")
    for file in (file for file in directory.rglob("*") if file.is_file()):
        (there / file.relative_to(directory).as_posix()).upload(file)

    def make(split, path=there):
        return make_source("tfds:tiny", split=split, path=str(path), seed=0, scenes=SMALL)

    for split in ("train", "train[20%:70%]", "train[70%:]+train[:20%]"):
        found, expected = pickle.loads(pickle.dumps(make(split))), make(split, directory)
        assert len(found) == len(expected) and found.images_sha256 == expected.images_sha256
        assert all(found[i] == expected[i] for i in reversed(range(len(found))))
    with pytest.raises(UserError, match=r"prepare it in a folder of a disk .* and copy that folder there"):
        make("train", "gs://bucket/nothing")
    shard = there / "tiny" / "1.0.0" / "tiny-train.array_record-00000-of-00001"
    whole = shard.read_bytes()
    shard.write_bytes(bytes(2**10) + whole[2**10 :])  # the records are small
    with pytest.raises(UserError, match=r"record 0 of TFDS data set 'tiny' cannot be read \(.*restore"):
        make("train")[0]
    shard.unlink()
    with pytest.raises(UserError, match=r"^gs://.*00001 of TFDS data set 'tiny/1.0.0' is missing; copy it"):
        make("train")


def test_tfds_gives_sets_of_classes(tiny):
    without_single, pixels, labels, classes = tiny[1][-1]
    assert without_single and classes == ["a", "b", "c"] and sorted(pixels) == list(range(10))
    for i, row in zip(pixels, labels, strict=True):
        assert row == [0, 1, 2][: i % 4] + [-1] * (3 - i % 4)


def test_tfds_errors_are_one_sentence(tiny, tmp_path):
    def make(name, split="train", path=tmp_path):
        make_source(f"tfds:{name}", split=split, path=str(path), seed=0, scenes=SMALL)

    for name in ("no_such_data", "mnist"):
        with pytest.raises(
            UserError, match=f"{name}.*tfds.builder.'{name}', data_dir=.*array_record"
        ) as error:
            make(name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no split 'test'") as error:
        make("tiny", "test", tiny[0])
    assert "\n" not in str(error.value)
