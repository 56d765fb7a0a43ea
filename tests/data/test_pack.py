import errno
import json
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from sparse_vis.commands import pack
from sparse_vis.data.loader import train_batches
from sparse_vis.data.records import read_records
from sparse_vis.data.scenes import SceneSpec
from sparse_vis.data.sources import make_source
from sparse_vis.runtime.errors import UserError
from tests.documents import ROOT

NAMES = ("cat/a.jpg", "cat/b.png", "cat/deep/c.webp", "dog/d.JPEG", "dog/e.png", "dog/ü.png", "top.png")
SHARDS = [f"images-0000{k}-of-00004.array_record" for k in range(4)]


def source(path, name="packed", split=""):
    return make_source(name, split=split, path=str(path), seed=0, scenes=SceneSpec())


def write(path, value, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)


def run(folder, output, **changes):
    settings = {"shard_size": 2, "threads": 2, "on_error": "stop"} | changes
    pack.pack(images=str(folder), output=output, **settings)


def metadata(output):
    return json.loads((output / "packed.json").read_text())


@pytest.fixture
def images(tmp_path):
    for value, name in enumerate(NAMES):
        write(tmp_path / "images" / name, 10 * value)
    return tmp_path / "images"


@pytest.fixture
def packed(images, tmp_path):
    run(images, tmp_path / "packed")
    return tmp_path / "packed"


@pytest.mark.fast
def test_a_shard_of_replaced_images_is_packed_again(images, packed, capsys):
    before = source(packed)
    other = Image.effect_noise((12, 10), 99).convert("RGB")
    other.save(images / before[0]["name"])  # noise: another size of file
    run(images, packed)
    assert (
        capsys.readouterr().out.count("was made from images that have changed since and is written again")
        == 1
    )
    name = images / before[1]["name"]
    os.utime(name, (1, 1))  # perhaps replaced by another of the same size
    run(images, packed)
    assert "note: the images of 1 finished shards (images-0" in capsys.readouterr().out
    os.utime(name, (1, 1))
    folder, found = source(images, "folder"), source(packed)
    assert [found[i] for i in range(7)] == [folder[i] for i in range(7)] and found[0] != before[0]


@pytest.mark.fast
def test_packed_records_are_those_of_the_folder(images, packed):
    folder, found = source(images, "folder"), source(packed.parent, split="packed")
    assert len(found) == len(folder) == 7 and found.classes == folder.classes == ("cat", "dog")
    assert [found[i] for i in range(7)] == [folder[i] for i in range(7)]
    assert [found[i]["label"] for i in range(7)] == [0, 0, 0, 1, 1, 1, -1]
    again = pickle.loads(pickle.dumps(found))  # as worker processes get it
    assert again[5] == folder[5] and repr(again) == repr(found)
    for index in (-1, 7):
        with pytest.raises(IndexError):
            found[index]
    a, b = (read_records(s, range(7), size=8, short_side=9) for s in (folder, found))
    assert a.name == b.name and (a.label == b.label).all() and (a.image == b.image).all()
    options = ArrayRecordReader(str(packed / SHARDS[0])).writer_options_string()
    assert "group_size:1," in options
    described = metadata(packed)
    assert described["version"] == 2 and described["records"] == 7 and described["classes"] == ["cat", "dog"]
    assert {name: shard["records"] for name, shard in described["shards"].items()} == dict(
        zip(SHARDS, (2, 2, 2, 1), strict=True)
    )


def test_loader_gives_the_same_batches_from_packed_and_folder(images, packed):
    def batches(found, workers):
        return [
            batch
            for batch, _ in train_batches(
                found, global_batch=4, seed=1, start_index=3, steps=3, canvas=16, min_side=4, workers=workers,
                threads=2, on_error="stop", process_index=0, process_count=1,
            )
        ]  # fmt: skip

    expected = batches(source(images, "folder"), 0)
    for workers in (0, 1):
        found = batches(source(packed), workers)
        assert len(found) == 3
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a.image, b.image)
            np.testing.assert_array_equal(a.index, b.index)


@pytest.mark.fast
def test_flat_folder_has_no_labels(tmp_path):
    write(tmp_path / "images" / "a.png", 5)
    name = os.fsdecode(b"\xff.png")  # no UTF-8
    (tmp_path / "images" / name).write_bytes((tmp_path / "images" / "a.png").read_bytes())
    run(tmp_path / "images", tmp_path / "packed")
    found = source(tmp_path / "packed")
    assert found.classes == () and "label" not in found[0] and [r["name"] for r in found] == ["a.png", name]


@pytest.mark.fast
def test_interrupted_packing_goes_on(images, tmp_path, monkeypatch):
    output, read = tmp_path / "packed", pack.read_record

    def interrupted(folder, index):
        if index == 5:
            raise KeyboardInterrupt
        return read(folder, index)

    monkeypatch.setattr(pack, "read_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(images, output, threads=1)
    assert sorted(os.listdir(output)) == [*SHARDS[:2], "packed.json"]
    with pytest.raises(UserError, match=r"unfinished \(4 of 7 images\); repeat the `python -m sparse_vis"):
        source(output)
    (output / f"{SHARDS[2]}.partial").write_bytes(b"left by a killed process")
    asked = []
    monkeypatch.setattr(pack, "read_record", lambda folder, i: asked.append(i) or read(folder, i))
    before = [(output / name).stat().st_mtime_ns for name in SHARDS[:2]]
    run(images, output)
    assert sorted(asked) == [4, 5, 6] and not list(output.glob("*.partial"))
    assert before == [(output / name).stat().st_mtime_ns for name in SHARDS[:2]]
    folder, found = source(images, "folder"), source(output)
    assert [found[i] for i in range(7)] == [folder[i] for i in range(7)]


@pytest.mark.fast
def test_missing_cut_and_damaged_shards_are_named_and_written_again(images, packed, capsys):
    path, folder = packed / SHARDS[1], source(images, "folder")
    whole = path.read_bytes()

    def refused(match, open_=lambda: source(packed)):
        with pytest.raises(UserError, match=match) as error:
            open_()
        assert SHARDS[1] in str(error.value) and "\n" not in str(error.value)

    path.unlink()
    refused("is missing; copy it again, or repeat the `python -m sparse_vis pack` that wrote it")
    path.write_bytes(whole[: len(whole) // 2])
    refused(r"is of \d+ bytes, not \d+")
    run(images, packed)
    assert path.read_bytes() == whole
    image = folder[2]["image"]
    path.write_bytes(whole.replace(image, bytes(len(image))))
    found = source(packed)
    refused(r"record 0 of shard .* is damaged \(.*\); copy the shard again, or repeat", lambda: found[2])
    assert found[4] == folder[4]
    run(images, packed)
    assert path.read_bytes() == whole
    assert f"note: shard {SHARDS[1]!r}" in (said := capsys.readouterr().out) and "written again" in said


@pytest.mark.fast
def test_leftovers_of_a_killed_process_are_written_over(images, tmp_path):
    output = tmp_path / "packed"
    output.mkdir()
    for name in ("packed.json.partial", f"{SHARDS[0]}.partial"):
        (output / name).write_text("{")
    run(images, output)
    assert sorted(os.listdir(output)) == [*SHARDS, "packed.json"] and len(source(output)) == 7


@pytest.mark.fast
@pytest.mark.parametrize("fault", ("fsync", "records"))
def test_a_full_disk_keeps_finished_shards_and_the_same_command_continues(
    images, tmp_path, monkeypatch, fault
):
    """Told by the kernel at the end, or ArrayRecord has written fewer records than it was given."""
    output, calls = tmp_path / "packed", []

    def full(descriptor):
        calls.append(1)
        if len(calls) == 4:  # packed.json, shard, packed.json, shard
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        if fault == "fsync":
            patched.setattr(os, "fsync", full)
        else:
            patched.setattr(pack.packed, "count_records", lambda path: 0 if SHARDS[1] in path.name else 2)
        with pytest.raises(OSError, match=r"No space left|the file is incomplete"):
            run(images, output)
    assert sorted(os.listdir(output)) == [SHARDS[0], "packed.json"]
    run(images, output)
    folder, found = source(images, "folder"), source(output)
    assert [found[i] for i in range(7)] == [folder[i] for i in range(7)]


@pytest.mark.fast
def test_bad_images_stop_with_their_name_or_are_skipped_and_listed(images, tmp_path, capsys):
    whole = (images / "cat" / "b.png").read_bytes()
    (images / "cat" / "b.png").write_bytes(whole[:50])
    (images / "top.png").write_text("no image")
    with pytest.raises(UserError, match=r"'cat/b\.png'.*repair or remove it, or pass --on-error=skip"):
        run(images, tmp_path / "packed")
    run(images, tmp_path / "packed", on_error="skip")
    printed, folder, found = capsys.readouterr().out, source(images, "folder"), source(tmp_path / "packed")
    assert "skipped: cannot decode 'cat/b.png'" in printed and "skipped: cannot decode 'top.png'" in printed
    assert "5 images of 2 classes in 4 shards, 2 skipped" in printed and "7/7 images" in printed
    assert list(found) == [folder[i] for i in (0, 2, 3, 4, 5)]
    listed = [name for s in metadata(tmp_path / "packed")["shards"].values() for name, _ in s["skipped"]]
    assert listed == ["cat/b.png", "top.png"]
    for name in NAMES:
        (images / name).write_text("no image")
    with pytest.raises(
        UserError, match=r"none of the 7 images can be used; the first one: cannot decode 'cat/a.jpg'"
    ):
        run(images, tmp_path / "none", on_error="skip")


@pytest.mark.fast
def test_other_folders_are_refused(images, packed, tmp_path, monkeypatch):
    before = (packed / "packed.json").read_text()
    with pytest.raises(UserError, match=r"other images or settings \(shard_size: 2 -> 3\)"):
        run(images, packed, shard_size=3)
    write(images / "dog" / "new.png", 1)
    with pytest.raises(
        UserError, match=r"other images .*\(images: 7 -> 8; images_sha256: \w{64} -> \w{64}\)"
    ):
        run(images, packed)
    with pytest.raises(UserError, match="is the --input folder; give another"):
        run(packed, packed)
    with pytest.raises(UserError, match="contains other files"):
        run(images, images / "dog")
    monkeypatch.setattr(sys, "argv", ["pack", f"--input={images}", f"--output={images / 'top.png'}"])
    with pytest.raises(UserError, match="is a file"):
        pack.main()
    monkeypatch.setattr(sys, "argv", ["pack", f"--input={images}", "--output=new", "--shard-size=0"])
    with pytest.raises(UserError, match="argument --shard-size: '0' is not a whole number of at least 1"):
        pack.main()
    with pytest.raises(UserError, match=r"holds no packed images \(packed.json\).*--config.data.split"):
        source(tmp_path, split="train[:90%]")
    described = {key: value for key, value in json.loads(before).items() if key != "checksum"}
    (packed / "packed.json").write_text(json.dumps(described | {"version": 3}))
    with pytest.raises(UserError, match="of version 3, but this program reads 2"):
        source(packed)
    for shard in described["shards"].values():
        del shard["sha256"], shard["images"], shard["times"]
    (packed / "packed.json").write_text(json.dumps(described | {"version": 1}))
    assert len(source(packed)) == 7
    with pytest.raises(UserError, match=r"earlier version, without checksums.*give --output another"):
        run(images, packed)
    (packed / "packed.json").write_text(before[:100])
    with pytest.raises(UserError, match=r"packed\.json is damaged"):
        source(packed)


def test_command_line(images, tmp_path):
    def command(*arguments):
        line = [sys.executable, "-m", "sparse_vis", "pack", *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=60)

    done = command(f"--input={images}", f"--output={tmp_path / 'packed'}")
    assert done.returncode == 0, done.stderr
    assert "7/7 images" in done.stdout and "images/s  ETA 0:00:00" in done.stdout
    assert len(source(tmp_path / "packed")) == 7
    done = command(f"--input={tmp_path / 'gone'}", f"--output={tmp_path / 'packed'}")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "--input" in done.stderr


@pytest.mark.fast
def test_the_pages_way_from_imagenets_archive_to_a_folder(tmp_path):
    """docs/imagenet.md's shell lines, on an archive of two classes made as ImageNet's is: a tar of tars."""
    page = (ROOT / "docs" / "imagenet.md").read_text()
    block = next(block for block in page.split("```")[1::2] if "tar -xf" in block)
    lines = "\n".join(line for line in block.splitlines() if line.startswith(("mkdir", "for")))
    classes = tmp_path / "classes"
    for name in ("n01", "n02"):
        (classes / name).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(classes / name / f"{name}_1.JPEG", "JPEG")
        with tarfile.open(classes / f"{name}.tar", "w") as inner:
            inner.add(classes / name / f"{name}_1.JPEG", f"{name}_1.JPEG")
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as outer:
        for name in ("n01", "n02"):
            outer.add(classes / f"{name}.tar", f"{name}.tar")
    subprocess.run(["bash", "-ec", lines], cwd=tmp_path, check=True)
    found = source(tmp_path / "images", "folder", "train")
    assert found.names == ["n01/n01_1.JPEG", "n02/n02_1.JPEG"]
    assert [found[i]["label"] for i in range(2)] == [0, 1]
