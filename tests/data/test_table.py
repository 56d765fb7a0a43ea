"""Tables and lists of paths, and Python objects, as sources."""

import csv
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sparse_vis.data.decode import decode
from sparse_vis.data.scenes import SceneSpec
from sparse_vis.data.sources import announce, as_source, make_source, open_input
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import say_once

pytestmark = pytest.mark.fast
ROWS = [("a/x.png", "dog", "train"), ("b/y.png", "", "test"), ("a/z.png", "cat", "test")]


@pytest.fixture
def photos(tmp_path):
    """Three images below tmp_path/photos; the value of their pixels is their row times 50."""
    for row, (name, _, _) in enumerate(ROWS):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), (50 * row,) * 3).save(path)
    return tmp_path / "photos"


def write(path, rows, header=("path", "label", "split")):
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


def values(source):
    return [int(decode(source[i]).mean()) for i in range(len(source))]


def test_a_table_gives_its_rows_in_order_with_labels(photos):
    for name in ("t.csv", "t.tsv", "t.parquet"):
        file = photos / name
        if file.suffix == ".parquet":
            names, labels, splits = map(list, zip(*ROWS, strict=True))
            labels[1] = None
            pq.write_table(pa.table({"path": names, "label": labels, "split": splits}), file)
        else:
            write(file, ROWS)
        found = open_input(f"table:{file}")
        assert values(found) == [0, 50, 100] and found.classes == ("cat", "dog")
        assert [found[i]["label"] for i in range(3)] == [1, -1, 0] and found.labels.tolist() == [1, -1, 0]
        assert [found[i]["name"] for i in range(3)] == [row[0] for row in ROWS]
        part = make_source(f"table:{file}", split="test", path="", seed=0, scenes=SceneSpec())
        assert values(part) == [50, 100] and part.classes == ("cat", "dog")  # of all rows
        assert [part[i]["label"] for i in range(2)] == [-1, 0]


def test_paths_may_be_absolute_or_begin_elsewhere_and_names_lie_below_what_they_share(photos, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    forms = {
        "absolute.txt": ([str(photos / row[0]) for row in ROWS], None),
        "up.txt": ([f"../photos/{row[0]}" for row in ROWS], None),
        "elsewhere.txt": ([row[0] for row in ROWS], str(photos)),
    }
    for name, (paths, start) in forms.items():
        (lists / name).write_text("\n".join(paths) + "\n\n")
        found = open_input(f"table:{lists / name}", data_dir=start)
        assert found.path == str(photos) and found.names == [row[0] for row in ROWS]
        assert found.classes == () and "label" not in found[0] and values(found) == [0, 50, 100]


def test_columns_can_be_named_and_whole_numbers_are_sorted_by_size(photos):
    file = write(photos / "t#1.csv", [(p, n) for (p, _, _), n in zip(ROWS, (10, 9, -1), strict=True)],
                 ("where", "species"))  # fmt: skip
    found = open_input(f"table:{file}#path=where,label=species")
    assert found.classes == ("9", "10") and found.labels.tolist() == [1, 0, -1]
    assert open_input(f"table:{file}#path=where,label=").classes == ()


def test_columns_of_parquet_are_read_whatever_their_type_or_named(photos):
    """pandas makes floats of whole numbers where one is missing."""
    paths = [row[0] for row in ROWS]

    def opened(label, address="", path=None):
        table = pa.table({"path": paths if path is None else path, "label": label})
        pq.write_table(table, photos / "t.parquet")
        return open_input(f"table:{photos}/t.parquet{address}")

    found = opened(pa.array([7.0, None, 0.0]))
    assert found.classes == ("0", "7") and found.labels.tolist() == [1, -1, 0]
    assert opened(pa.array([True, False, None])).classes == ("False", "True")
    assert opened(pa.array([None, None, None])).classes == ()
    lists = pa.array([[1], [2], [3]])
    for address in ("", "#label=label"):
        with pytest.raises(UserError, match=r"a column 'label' of type list<.*>; write it as text"):
            opened(lists, address)
    assert opened(lists, "#label=").classes == ()
    with pytest.raises(UserError, match=r"a column 'path' of type binary; .* inside the file with hf:"):
        opened(["a", "b", "c"], path=pa.array([b"x", b"y", b"z"]))


def test_what_a_table_holds_is_said(photos, capsys):
    file = write(photos / "t.csv", ROWS)
    say_once.cache_clear()
    announce(open_input(f"table:{file}", split="test"))
    assert capsys.readouterr().out == f"2 images of {file}, split test, 2 classes\n"


@pytest.mark.parametrize(
    ("content", "address", "message"),
    [
        (None, "t.csv", r"^table '.*t\.csv' cannot be read \(No such file.*; correct --input\.$"),
        ("", "t.csv", r"of paths \(\); name it as in --input=table:.*t\.csv#path=COLUMN\.$"),
        ("photo,label\na/x.png,1\n", "t.csv", r"of paths \('photo', 'label'\); name it"),
        ("path\n", "t.csv", r"t\.csv' lists no images; add rows, or correct --input\.$"),
        ("path,label\na/x.png\n", "t.csv", r"is damaged \(row 1 has another number of cells"),
        ('path\n"a/x.png\n', "t.csv", r"is damaged \(unexpected end of data\); repair it"),
        ("path\na/x.png\na/../a/x.png\n", "t.csv", r"lists '.*/a/x\.png' twice; remove one"),
        ("path\na/x.png\nno.png\n", "t.csv", r"no\.png', which does not exist \(1 of 2 paths .*--data-dir"),
        ("path,label\n,1\n", "t.csv", "row 1 of table .* has no path; complete or remove the row"),
        ("path,label,label\na/x.png,1,2\n", "t.csv", r"t\.csv' has more than one column 'label'; rename"),
        ("path\na/x.png\n", "t.csv#path=file", "has no column 'file', only 'path'"),
        ("path\na/x.png\n", "t.csv#paths=path", "names the column 'paths', .* path or label or"),
        ("path\na/x.png\n", "t.xlsx", r"neither \.csv, \.tsv, \.parquet nor \.txt"),
        ("no parquet", "t.parquet", r"t\.parquet' is damaged \(.*\); repair it"),
        ("path\na/x.png\n", "t.csv split=val", r"no column 'split'; set --split= \(empty\) for all rows\.$"),
        ("path,split\na/x.png,c\n", "t.csv split=val", "no rows of split 'val'; set --split to 'c'"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_one_sentence(photos, content, address, message):
    address, _, split = address.partition(" split=")
    if content is not None:
        (photos / address.partition("#")[0]).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        open_input(f"table:{photos / address}", split=split or None)
    assert "\n" not in str(error.value) and "config" not in str(error.value)


class Pairs:
    """As data sets of torchvision."""

    classes = ("cat", "dog")

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_python_objects_are_sources(photos):
    paths = [photos / row[0] for row in ROWS]
    grey = [np.full((8, 9), 50 * row, np.uint8) for row in range(3)]
    kinds = (paths, list(map(str, paths)), [path.read_bytes() for path in paths],
             [Image.open(path) for path in paths], np.stack(grey), np.stack(grey)[..., None],
             [{"image": image, "name": "n"} for image in grey])  # fmt: skip
    for data in kinds:
        found = as_source(data)
        assert values(found) == [0, 50, 100] and found.classes == () and "label" not in found[0]
        assert decode(found[0]).shape == (8, 9, 3)
    assert as_source(kinds[-1])[0]["name"] == "n" and as_source(grey)[2]["name"] == "#2"
    assert as_source(paths)[0]["name"] == os.fspath(paths[0])
    pairs = as_source(Pairs(list(zip(paths, (1, np.int64(0), None), strict=True))))
    assert [pairs[i]["label"] for i in range(3)] == [1, 0, -1] and pairs.classes == ("cat", "dog")
    assert as_source(Pairs(paths), classes=["a"])[0]["label"] == -1
    assert values(as_source(photos)) == [0, 100, 50]  # a folder: sorted by path
    with pytest.raises(IndexError):
        pairs[3]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "^the list with the images is empty; give one with images"),
        (3, "^a int is not a data set; give an object with __len__ and __getitem__"),
        ({"image": 1}, "^a dict is not a data set"),
        (iter([1]), "^a list_iterator is not a data set"),
        ([np.zeros((4, 4, 3))], r"is a ndarray of float64, shape \(4, 4, 3\); give a path, the bytes"),
        ([{"label": 1}], r"^item 0 of the list with the images has no key 'image' \(label\); add it"),
        (["no.png"], r"^cannot read 'no\.png' \(No such file or directory\); correct the path of item 0 of"),
        ([np.zeros((0, 5, 3), np.uint8)], r"is a ndarray of uint8, shape \(0, 5, 3\); give a path"),
        ([Image.new("L", (5, 0))], r"is a ndarray of uint8, shape \(0, 5, 3\); give a path, the bytes"),
        (Pairs([(np.zeros((4, 4, 3), np.uint8), 2)]), "label of item 0 .* is 2; give .* 0 to 1, or"),
    ],
)  # fmt: skip
def test_a_wrong_object_is_one_sentence(data, message):
    with pytest.raises(UserError, match=message) as error:
        as_source(data)
    assert "\n" not in str(error.value)


def test_a_repeated_column_of_a_parquet_file_is_named_if_it_is_used(photos):
    columns = [pa.array(values) for values in (["a/x.png"], [3], [4], ["cat"])]
    pq.write_table(pa.table(columns, names=["path", "id", "id", "label"]), photos / "t.parquet")
    assert open_input(f"table:{photos / 't.parquet'}").classes == ("cat",)
    with pytest.raises(UserError, match="has more than one column 'id'; rename or remove the others"):
        open_input(f"table:{photos / 't.parquet'}#label=id")
