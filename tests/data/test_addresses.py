"""The same images through every source: the same stream for training, evaluation, features and packing."""

import argparse
import csv
import io
import json
import pickle
import tarfile

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sparse_vis.commands import extract, pack
from sparse_vis.data.loader import train_batches
from sparse_vis.data.records import read_records
from sparse_vis.data.scenes import SceneSpec
from sparse_vis.data.sources import as_source, make_source, open_input
from sparse_vis.runtime.skipped import MAX_PIXELS

COUNT, KINDS = 7, ("table", "webdataset", "hf", "own")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Seven images of two classes as a folder, and the address of each other source that holds the same."""
    root = tmp_path_factory.mktemp("places")
    rng, names = np.random.default_rng(0), [f"{'ab'[n > 3]}/{n}.png" for n in range(COUNT)]
    for n, name in enumerate(names):
        path = root / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + n, 30 - n, 3), dtype=np.uint8)).save(path)
    files = [(root / "folder" / name).read_bytes() for name in names]
    labels = [name[0] for name in names]
    with open(root / "folder" / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *zip(names, labels, strict=True)])
    for shard, numbers in enumerate((range(4), range(4, COUNT))):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for n in numbers:
                for extension, data in (("png", files[n]), ("cls", labels[n].encode())):
                    info = tarfile.TarInfo(f"{n}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    rows = {"image": [{"bytes": data, "path": None} for data in files], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(root / "saved")
    return {
        "folder": str(root / "folder"), "table": f"table:{root}/folder/table.csv",
        "webdataset": f"webdataset:{root}/{{0..1}}.tar", "hf": f"hf:{root}/saved",
        "own": [(data, "ab".index(label)) for data, label in zip(files, labels, strict=True)],
    }  # fmt: skip


def opened(places, kind):
    return as_source(places[kind], classes=("a", "b") if kind == "own" else None)


def stream(source, start=0, stop=9, size=4, **changes):
    """Images and numbers of the stream from step start to stop."""
    settings = dict(
        global_batch=size, seed=3, start_index=start * size, steps=stop - start, canvas=32, min_side=8,
        workers=0, threads=2, on_error="stop", process_index=0, process_count=1,
    )  # fmt: skip
    batches = [batch for batch, _ in train_batches(source, **settings | changes)]
    return [np.concatenate([getattr(b, name) for b in batches]) for name in ("image", "height", "index")]


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_stream_resume_and_split_over_processes_are_those_of_the_folder(places, kind):
    expected = stream(opened(places, "folder"))
    source = pickle.loads(pickle.dumps(opened(places, kind)))  # as worker processes get it
    same(stream(source), expected)
    same(stream(source, start=5), [rows[20:] for rows in expected])  # exact resume
    same(stream(source, start=10, stop=18, size=2), [rows[20:] for rows in expected])  # of another batch size
    for k in (0, 1):  # and of other processes
        rows = [row for step in range(9) for row in range(4 * step + 2 * k, 4 * step + 2 * k + 2)]
        same(stream(source, process_index=k, process_count=2), [array[rows] for array in expected])


@pytest.mark.fast
@pytest.mark.parametrize("kind", KINDS[:3])
def test_labels_and_records_are_those_of_the_folder(places, kind):
    source = make_source(places[kind], split="", path="", seed=0, scenes=SceneSpec())
    found, expected = (read_records(s, range(COUNT), size=16, short_side=18) for s in
                       (source, opened(places, "folder")))  # fmt: skip
    np.testing.assert_array_equal(found.image, expected.image)
    assert (
        source.classes == ("a", "b") and found.label.tolist() == expected.label.tolist() == [0] * 4 + [1] * 3
    )
    assert source.labels.tolist() == [0] * 4 + [1] * 3  # known without reading the images
    assert len(set(found.name)) == COUNT and [source.name_of(i) for i in range(COUNT)] == list(found.name)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_extract_and_pack_read_the_address(places, kind, workdir, tmp_path, capsys):
    pack.pack(images=places[kind], output=tmp_path / "packed", shard_size=3, threads=1, on_error="stop")
    packed = open_input(str(tmp_path / "packed"))
    folder = opened(places, "folder")
    assert packed.classes == ("a", "b") and packed.images_sha256 == opened(places, kind).images_sha256
    assert [packed[i]["image"] for i in range(COUNT)] == [folder[i]["image"] for i in range(COUNT)]
    features = []
    for place in (places[kind], str(tmp_path / "packed"), places["folder"]):
        given = dict(
            checkpoint=str(workdir), images=place, output=tmp_path / f"out-{len(features)}", letterbox=False,
            name=None, split=None, data_dir=None, outputs=("cls",), dtype="float32", resize=None, batch=4,
            shard_size=4, threads=1, on_error="stop", max_pixels=MAX_PIXELS,
        )  # fmt: skip
        for _ in range(2):  # the second call finds everything done
            extract.extract(argparse.Namespace(**given))
        files = sorted(given["output"].glob("*.parquet"))
        features.append([row for file in files for row in pq.read_table(file)["cls"].to_pylist()])
        labels = [label for file in files for label in pq.read_table(file)["label"].to_pylist()]
        manifest = json.loads((given["output"] / "manifest.json").read_text())
        assert labels == [0] * 4 + [1] * 3 and manifest["classes"] == ["a", "b"]
    assert len(features[0]) == COUNT and features[0] == features[1] == features[2]
