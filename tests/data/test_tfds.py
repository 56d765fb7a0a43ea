"""ImageNet through TFDS: its own imagenet2012, prepared from tiny archives in ILSVRC's layout."""

import argparse
import io
import json
import shlex
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import sparse_vis
from sparse_vis.commands import extract
from sparse_vis.data.decode import decode
from sparse_vis.data.loader import train_batches
from sparse_vis.data.scenes import SceneSpec
from sparse_vis.data.sources import make_source
from sparse_vis.runtime.errors import UserError
from tests.tiny_checkpoint import SIZE, write_checkpoints

SYNSETS = ("n01440764", "n01443537", "n15075141")
# Of the first three validation images of ILSVRC 2012: sea snake, alp, Shetland sheepdog.
VALIDATION = ("n01751748", "n09193705", "n02105855")


def jpeg(height):
    file = io.BytesIO()
    Image.new("RGB", (40, height), (height, 100, 50)).save(file, "JPEG")
    return file.getvalue()


def archive(files):
    """The bytes of a tar of {name: bytes}."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return found.getvalue()


def source(path, split, name="imagenet2012"):
    return make_source(f"tfds:{name}", split=split, path=str(path), seed=0, scenes=SceneSpec())


def prepare(path):
    """{file name: bytes} of a data set prepared by the command that the error of an empty folder gives."""
    train = {f"{s}_{i}.JPEG": jpeg(20 + 20 * k + i) for k, s in enumerate(SYNSETS) for i in range(20)}
    validation = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(100 + i) for i in (1, 2, 3)}
    by_class = {f"{s}.tar": archive({n: b for n, b in train.items() if n.startswith(s)}) for s in SYNSETS}
    archives = path / "downloads" / "manual"
    archives.mkdir(parents=True)
    (archives / "ILSVRC2012_img_train.tar").write_bytes(archive(by_class))
    (archives / "ILSVRC2012_img_val.tar").write_bytes(archive(validation))
    with pytest.raises(UserError, match="is not prepared in") as error:
        source(path, "train")
    command = shlex.split(str(error.value).split("`")[1])
    assert command[:2] == ["python", "-c"]
    command = [sys.executable, *command[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return train | validation


def check_sub_splits_labels_names_and_bytes(path, files):
    splits = {split: source(path, split) for split in ("train[:90%]", "train[90%:]", "train", "validation")}
    assert [len(found) for found in splits.values()] == [54, 6, 60, 3]
    records = {split: [found[i] for i in range(len(found))] for split, found in splits.items()}
    names = {split: {record["name"] for record in rows} for split, rows in records.items()}
    assert not names["train[:90%]"] & names["train[90%:]"]
    assert names["train[:90%]"] | names["train[90%:]"] == names["train"]
    assert names["train"] | names["validation"] == set(files)
    classes = splits["train"].classes
    assert len(classes) == 1000 and classes == splits["validation"].classes
    for record in records["train"] + records["validation"]:
        assert record["image"] == files[record["name"]]
    assert all(record["name"].startswith(classes[record["label"]]) for record in records["train"])
    by_name = sorted(records["validation"], key=lambda record: record["name"])
    assert tuple(classes[record["label"]] for record in by_name) == VALIDATION
    assert len({record["label"] for record in records["train[90%:]"]}) > 1  # prepared in a shuffled order


def check_loader_reads_one_epoch_of_a_sub_split(path):
    found = source(path, "train[:90%]")
    batches = train_batches(
        found, global_batch=27, seed=0, start_index=0, steps=2, canvas=80, min_side=8, workers=0, threads=1,
        on_error="stop", process_index=0, process_count=1,
    )  # fmt: skip
    heights = np.concatenate([batch.height for batch, _ in batches])
    assert sorted(heights) == sorted(decode(found[i]).shape[0] for i in range(54))


def check_features_of_a_sub_split(path, files):
    def run(output, **changes):
        settings = dict(
            checkpoint=str(path / "run"), name=None, images="tfds:imagenet2012", split="train[90%:]",
            data_dir=str(path), outputs=("cls",), dtype="float32", resize=40, batch=4, shard_size=4,
            threads=2, on_error="stop", letterbox=False,
        )  # fmt: skip
        extract.extract(argparse.Namespace(output=output, max_pixels=2**27, **(settings | changes)))

    def centre(name):
        picture = Image.open(io.BytesIO(files[name]))
        scale = 40 / min(picture.size)
        picture = picture.resize(
            tuple(round(side * scale) for side in picture.size), Image.Resampling.BICUBIC
        )
        left, top = (picture.width - SIZE) // 2, (picture.height - SIZE) // 2
        return np.asarray(picture.crop((left, top, left + SIZE, top + SIZE)))

    write_checkpoints(path / "run", {1: 1})
    run(path / "features")
    found = source(path, "train[90%:]")
    shards = sorted((path / "features").glob("*.parquet"))
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    assert len(shards) == 2 and len(rows) == 6
    assert [row["name"] for row in rows] == [found[i]["name"] for i in range(6)]
    model, params = sparse_vis.load(path / "run")
    cls = sparse_vis.encode(model, params, np.stack([centre(row["name"]) for row in rows])).cls
    np.testing.assert_allclose([row["cls"] for row in rows], cls[:, 0], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"images_sha256: \w+ -> \w+"):
        run(path / "features", split="train[:10%]")
    with pytest.raises(UserError, match=r"has no split 'gone' .*correct --split"):
        run(path / "features", split="gone")


def check_damage_and_tfrecord_are_one_sentence(path):
    def refused(match, make):
        with pytest.raises(UserError, match=match) as error:
            make()
        assert "\n" not in str(error.value)

    (version,) = (path / "imagenet2012").iterdir()
    (shard,) = version.glob("imagenet2012-train.array_record*")
    shard.write_bytes(bytes(shard.stat().st_size))
    found = source(path, "train")
    refused(r"record 3 of TFDS data set 'imagenet2012' cannot be read \(.*\); restore or", lambda: found[3])
    refused("unknown data source 'tfds:'; choose .*'tfds:…'", lambda: source(path, "train", ""))
    for name in ("a b", "../x", "imagenet2012:9.9.9"):
        refused("TFDS has no data set of the name, .*; write tfds:NAME", lambda: source(path, "train", name))  # noqa: B023
    info = json.loads((version / "dataset_info.json").read_text())
    assert info["fileFormat"] == "array_record"
    (version / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    refused(
        "is not stored as ArrayRecord; run .*file_format='array_record'.* with another data_dir",
        lambda: source(path, "train"),
    )


# One test, because preparing takes seconds and tests are spread over processes.
def test_imagenet_prepared_from_archives(tmp_path):
    files = prepare(tmp_path)
    check_sub_splits_labels_names_and_bytes(tmp_path, files)
    check_loader_reads_one_epoch_of_a_sub_split(tmp_path)
    check_features_of_a_sub_split(tmp_path, files)
    check_damage_and_tfrecord_are_one_sentence(tmp_path)
