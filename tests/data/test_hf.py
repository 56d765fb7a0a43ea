"""Data sets of the `datasets` package, made here; nothing is downloaded."""

import io
import pickle
import socket

import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sparse_vis.data.decode import decode
from sparse_vis.data.sources import open_input
from sparse_vis.runtime import network
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast
LABELS = [1, 0, None, 1]


@pytest.fixture(autouse=True)
def cached_here(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(network, "unreachable", lambda: "")
    datasets.disable_progress_bars()


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (9, 8), (value,) * 3).save(file, "PNG")
    return file.getvalue()


def made(numbers=range(4), **columns):
    """A data set with an image of each value times 50, its label and a caption."""
    rows = {
        "caption": [f"picture {n}" for n in numbers],
        "image": [{"bytes": png(50 * n), "path": None} for n in numbers],
        "label": [LABELS[n] for n in numbers],
    }
    features = {
        "caption": datasets.Value("string"), "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
    }  # fmt: skip
    for name, (feature, values) in columns.items():
        rows[name], features[name] = values, feature
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def values(source):
    return [int(decode(source[i]).mean()) for i in range(len(source))]


def test_a_saved_folder_is_mapped_into_memory_and_has_labels(tmp_path):
    made().save_to_disk(tmp_path / "animals")
    found = open_input(f"hf:{tmp_path / 'animals'}")
    assert values(found) == [0, 50, 100, 150] and found.classes == ("cat", "dog")
    assert [found[i]["label"] for i in range(4)] == [1, 0, -1, 1]
    assert found[2]["image"] == png(100) and found[2]["name"] == found.name_of(2) == "animals#2"
    assert found[0].keys() == {"image", "name", "label", "max_pixels"}
    copy = pickle.dumps(found)
    assert len(copy) < 20_000 and png(150) not in copy  # the images stay in the file
    assert values(pickle.loads(copy)) == [0, 50, 100, 150]
    again = open_input(f"hf:{tmp_path / 'animals'}")
    assert again.images_sha256 == found.images_sha256 and repr(again) == repr(found)
    with pytest.raises(UserError, match=r"animals is a single split, not 'test'; set --split= \(empty\)\.$"):
        open_input(f"hf:{tmp_path / 'animals'}", split="test")
    with pytest.raises(IndexError):
        found[4]


def test_splits_of_a_saved_folder(tmp_path):
    place = f"hf:{tmp_path / 'animals'}"
    datasets.DatasetDict(train=made(range(3)), test=made([3])).save_to_disk(tmp_path / "animals")
    assert values(open_input(place, split="test")) == [150]
    assert open_input(place, split="train")[1]["name"] == "animals/train#1"
    with pytest.raises(UserError, match=r"has several splits; set --split to 'train' or 'test'\.$"):
        open_input(place)
    with pytest.raises(UserError, match=r"has no split 'val'; set --split to 'train' or 'test'\.$"):
        open_input(place, split="val")


def test_parquet_files_with_and_without_metadata(tmp_path):
    for split, numbers in (("train-0", (0, 1)), ("train-1", (2,)), ("test-0", (3,))):
        made(numbers).to_parquet(tmp_path / f"{split}.parquet")
    pattern = f"hf:parquet:{tmp_path}/{{split}}-*.parquet"
    found = open_input(pattern, split="train", data_dir=str(tmp_path / "own"))
    assert values(found) == [0, 50, 100] and found.classes == ("cat", "dog") and (tmp_path / "own").is_dir()
    assert values(open_input(f"hf:parquet:{tmp_path}/{{test-0,train-1}}.parquet")) == [150, 100]
    table = pa.table({"jpg": [png(50), png(100)], "species": ["owl", "cat"], "n": [3, 3]})
    pq.write_table(table, tmp_path / "plain.parquet")
    plain = open_input(f"hf:parquet:{tmp_path}/plain.parquet#label=species")
    assert values(plain) == [50, 100] and plain.classes == ("cat", "owl")
    assert [plain[i]["label"] for i in range(2)] == [1, 0]
    none = open_input(f"hf:parquet:{tmp_path}/plain.parquet")  # no column has a usual name
    assert none.classes == () and "label" not in none[0]
    with pytest.raises(UserError, match=r"^Parquet file '.*/gone\.parquet' does not exist; copy it there"):
        open_input(f"hf:parquet:{tmp_path}/gone.parquet")
    (tmp_path / "bad.parquet").write_text("no parquet file")
    with pytest.raises(UserError, match=r"bad\.parquet cannot be read \(.*\); copy it again") as error:
        open_input(f"hf:parquet:{tmp_path}/bad.parquet")
    assert "\n" not in str(error.value)


def test_sets_of_classes_and_other_columns(tmp_path):
    sets = datasets.List(datasets.ClassLabel(names=["a", "b", "c"])), [[0, 2], [], [1], [2]]
    other = datasets.Image(), [{"bytes": png(n), "path": None} for n in range(3)] + [None]
    made(things=sets, small=other).save_to_disk(tmp_path / "data")
    place = f"hf:{tmp_path / 'data'}"
    found = open_input(f"{place}#label=things,image=small")
    assert found.classes == ("a", "b", "c") and found.sets
    assert [found[i]["labels"].tolist() for i in range(3)] == [[0, 2], [], [1]]
    assert found[0]["labels"].dtype == np.int32 and found[1]["image"] == png(1)
    with pytest.raises(UserError, match="'data#3' has no image, its row is empty"):
        found[3]
    assert values(open_input(f"{place}#label=")) == [0, 50, 100, 150]  # of `image`, the usual name


def test_a_downloaded_folder_of_files(tmp_path):
    for n, kind in enumerate(("cat", "dog")):
        path = tmp_path / "data" / "train" / kind / f"{n}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(png(50 * n))
    found = open_input(f"hf:{tmp_path / 'data'}")
    assert values(found) == [0, 50] and found.classes == ("cat", "dog") and found[1]["label"] == 1
    with pytest.raises(UserError, match=r"train\[:0%\].* corresponds to no data!\); correct --split"):
        open_input(f"hf:{tmp_path / 'data'}", split="train[:0%]")
    path.unlink()
    with pytest.raises(
        UserError, match=r"cannot read '.*1\.png' \(No such file.*; restore the file of data#1"
    ):
        found[1]
    with pytest.raises(UserError, match="correct --split") as error:
        open_input(f"hf:{tmp_path / 'data'}", split="val")
    assert "'val'" in str(error.value).replace('"', "'") and "\n" not in str(error.value)


def test_of_many_files_the_one_that_is_missing_is_named(tmp_path):
    made().save_to_disk(tmp_path / "data")
    (gone,) = (tmp_path / "data").glob("*.arrow")
    gone.unlink()
    message = rf"data cannot be read \(No such file or directory: '{gone}'\); copy it again"
    with pytest.raises(UserError, match=message):
        open_input(f"hf:{tmp_path / 'data'}")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("#image=caption", r"the column 'caption' of data set hf:.* holds no images \('caption', .*#image="),
        ("#image=picture", "has no column 'picture', only 'caption', 'image', 'label'"),
        ("#label=species", "has no column 'species', only"),
        ("#pixels=image", "names the column 'pixels', which is unknown .*use image or label"),
    ],
)
def test_wrong_columns_are_one_sentence(tmp_path, address, message):
    made().save_to_disk(tmp_path / "animals")
    with pytest.raises(UserError, match=message) as error:
        open_input(f"hf:{tmp_path / 'animals'}{address}")
    assert "\n" not in str(error.value) and "config" not in str(error.value)


def test_several_or_no_columns_of_images_and_no_rows(tmp_path, monkeypatch):
    image = datasets.Image(), [{"bytes": png(0), "path": None}] * 4
    made(left=image, right=image).remove_columns("image").save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match=r"has several columns of images \('left', 'right'\); name one"):
        open_input(f"hf:{tmp_path / 'two'}")
    made().remove_columns("image").save_to_disk(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no column of images \('caption', 'label'\); name one"):
        open_input(f"hf:{tmp_path / 'none'}")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "empty.parquet")
    with pytest.raises(UserError, match=r"empty\.parquet cannot be read \(BatchSize.*\); copy it again"):
        open_input(f"hf:parquet:{tmp_path / 'empty.parquet'}")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made([]))
    with pytest.raises(
        UserError, match=r"^data set hf:owner/x, split 'test', is empty; give one with images"
    ):
        open_input("hf:owner/x", split="test")
    monkeypatch.undo()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder cannot be read \(.*\); copy it again"):
        open_input(f"hf:{tmp_path / 'folder'}")


def test_without_a_network_the_error_says_how_to_place_files(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach 'owner/animals' on the Hub (LocalEntryNotFoundError)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match="cannot be downloaded") as error:
        open_input("hf:owner/animals:small", split="train")
    assert str(error.value) == (
        "data set hf:owner/animals:small is not a folder here and cannot be downloaded (Couldn't reach "
        "'owner/animals' on the Hub (LocalEntryNotFoundError)); where there is a network, run `python -c "
        "\"from datasets import load_dataset as l; l('owner/animals', 'small').save_to_disk('FOLDER')\"`, "
        "copy FOLDER here, and give --input=hf:FOLDER."
    )


def test_a_hub_that_does_not_answer_is_not_asked_again(monkeypatch):
    """By `datasets` itself: it would try twelve times, with pauses."""
    monkeypatch.setattr(network, "unreachable", lambda: "the hub does not answer")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a server was asked"))
    with pytest.raises(UserError, match=r"cannot be downloaded \(the hub does not answer\); where there is"):
        open_input("hf:owner/animals", split="train")
    assert not datasets.config.HF_HUB_OFFLINE and not huggingface_hub.constants.HF_HUB_OFFLINE


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"hf:x needs the package datasets; pip install datasets"):
        open_input("hf:x")
