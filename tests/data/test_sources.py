import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sparse_vis.data.records import read_records
from sparse_vis.data.scenes import SceneSpec
from sparse_vis.data.sources import make_source
from sparse_vis.errors import UserError

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
    with pytest.raises(UserError, match="holds no image"):
        folder(tmp_path)
    write(tmp_path / "a.png")
    found = folder(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"'a\.png'"):
        found[0]


@pytest.mark.fast
def test_unknown_source_offers_the_known_ones():
    with pytest.raises(UserError, match=r"'imagenet'.*'scenes', 'folder', 'packed' or 'tfds:<name>'"):
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
    with pytest.raises(UserError, match="short side 16"):
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
