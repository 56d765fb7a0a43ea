"""Tools whose model, images and output are in a bucket: the same files as on a disk."""

import io
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sparse_vis.commands import export, extract, pack, reconstruct
from sparse_vis.data.packed import PackedSource
from sparse_vis.data.scenes import SceneSpec
from sparse_vis.data.sources import make_source, open_input
from sparse_vis.report import report
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.paths import as_path


@pytest.fixture(autouse=True)
def nothing_here(tmp_path_factory, monkeypatch):
    """Nothing is written to a local folder gs: or s3:, nor anywhere else in the current one."""
    monkeypatch.chdir(folder := tmp_path_factory.mktemp("current"))
    yield
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of two classes, with one image on several blocks of a shard, and a hidden file."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for name, side in (("a/0.png", 24), ("a/1.png", 260), ("b/2.png", 30), ("b/3.jpg", 40)):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (side, side, 3), np.uint8)).save(folder / name)
    (folder / "b" / ".hidden.png").write_bytes(b"x")
    (folder / "table.csv").write_text("path,label\na/0.png,x\nb/3.jpg,y\n")
    return folder


@pytest.fixture(scope="module")
def there(bucket, images, workdir):
    """The same folder, and a tiny run, in the bucket."""
    top = as_path("gs://bucket/tools")
    for name, folder in (("images", images), ("run", workdir)):
        for file in folder.rglob("*"):
            if file.is_file():
                (top / name / file.relative_to(folder).as_posix()).upload(file)
    for step in (top / "run" / "checkpoints").iterdir():
        (step / "commit_success.txt").write_bytes(b"")
    return top


def call(tool, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["tool", *map(str, words)])
    tool.main()


def test_sources_give_the_same_records(there, images, tmp_path, monkeypatch, capsys):
    call(pack, monkeypatch, f"--input={there / 'images'}", f"--output={there / 'packed'}", "--shard-size=3")
    call(pack, monkeypatch, f"--input={images}", f"--output={tmp_path / 'packed'}", "--shard-size=3")
    for name in ("images", "packed", "table:"):
        address = f"table:{there}/images/table.csv" if name == "table:" else str(there / name)
        local = {"images": images, "packed": tmp_path / "packed", "table:": f"table:{images}/table.csv"}[name]
        found, expected = open_input(address), open_input(str(local))
        assert len(found) == len(expected) == (2 if name == "table:" else 4)
        assert found.classes == expected.classes and found.images_sha256 == expected.images_sha256
        assert all(found[i] == expected[i] for i in reversed(range(len(found))))
    assert isinstance(open_input(str(there / "packed")), PackedSource)
    capsys.readouterr()
    call(pack, monkeypatch, f"--input={there / 'images'}", f"--output={there / 'packed'}", "--shard-size=3")
    assert "4 images of 2 classes in 2 shards, 0 skipped" in capsys.readouterr().out
    shard = there / "packed" / "images-00000-of-00002.array_record"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard 'images-0.*is of \d+ bytes, not \d+; copy it again"):
        PackedSource(str(there / "packed"))


def test_features_are_those_of_the_folder(there, images, workdir, tmp_path, monkeypatch, capsys):
    model = ("--outputs=cls,sparse", "--batch=4", "--shard-size=3")
    remote, local = there / "features", tmp_path / "features"
    in_bucket = f"--checkpoint={there / 'run'}", f"--input={there / 'images'}", f"--output={remote}"
    call(extract, monkeypatch, *in_bucket, *model)
    call(extract, monkeypatch, f"--checkpoint={workdir}", f"--input={images}", f"--output={local}", *model)
    names = {path.name for path in remote.iterdir()}
    assert names == {path.name for path in local.iterdir()} and len(names) == 6
    for name in (name for name in names if name.endswith(".parquet")):
        assert pq.read_table(io.BytesIO((remote / name).read_bytes())) == pq.read_table(local / name)
    capsys.readouterr()
    call(extract, monkeypatch, *in_bucket, *model)
    assert f"{remote}: 4 images in 2 shards, 0 skipped" in capsys.readouterr().out


def test_pictures_exports_and_reports(there, images, s3, monkeypatch):
    import sparse_vis

    run = f"--checkpoint={there / 'run'}"
    call(reconstruct, monkeypatch, run, f"--input={images}", f"--output={there / 'sheets'}")
    assert Image.open(io.BytesIO((there / "sheets" / "b" / "3.png").read_bytes())).size == (64, 32)
    call(export, monkeypatch, run, "--output=s3://bucket/release")
    exported, trained = (sparse_vis.load(place)[1] for place in ("s3://bucket/release", there / "run"))
    for part in ("encoder", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, exported[part], trained[part])
    call(report, monkeypatch, run, f"--output={there / 'page.html'}", f"--images={images}", "--gallery=2")
    assert b'content="sparse_vis.report"' in (there / "page.html").read_bytes()[:400]


@pytest.mark.fast
@pytest.mark.parametrize("name", ["hf:gs://b/x", "webdataset:GS://b/x.tar", "pictures"])
def test_what_cannot_be_read_from_a_bucket_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"in a bucket, from which \w+ cannot read; copy it to the disk"):
        make_source(name, split="train", path="" if ":" in name else "gs://b/d", seed=0, scenes=SceneSpec())
    with pytest.raises(
        UserError, match=r"^table 'gs:/b/t\.csv' is not the address of a bucket; write gs://B"
    ):
        open_input("table:gs:/b/t.csv")
    assert list(tmp_path.iterdir()) == []
