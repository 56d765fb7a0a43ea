"""Fashion-MNIST as folders: a tiny package of the same form."""

import gzip
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks.evidence import fashion
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast


def idx(array):
    head = struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.tobytes())


@pytest.fixture
def package(tmp_path):
    """Folder with a package of 20 training and 10 test images; image i is of grey level i, class i % 10."""
    tree = tmp_path / "tree"
    (tree / fashion.FOLDER).mkdir(parents=True)
    for split, count in (("train", 20), ("t10k", 10)):
        numbers = np.arange(count, dtype=np.uint8)
        images = np.broadcast_to(numbers[:, None, None], (count, 28, 28))
        (tree / fashion.FOLDER / f"{split}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (tree / fashion.FOLDER / f"{split}-labels-idx1-ubyte.gz").write_bytes(idx(numbers % 10))
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(
        "Package: dataset-fashion-mnist\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    )
    (tmp_path / "downloads").mkdir()
    file = tmp_path / "downloads" / "dataset-fashion-mnist_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", tree, file], check=True, capture_output=True)
    return tmp_path / "downloads"


def start(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fashion", *map(str, arguments)])
    fashion.main()


def test_images_lie_below_their_classes(package, tmp_path, monkeypatch):
    out = tmp_path / "out"
    start(monkeypatch, f"--output={out}", f"--downloads={package}")
    found = {str(path.relative_to(out)): path for path in out.rglob("*.png")}
    assert len(found) == 30 and {name.split("/")[0] for name in found} == {"train", "test"}
    for name, level in (("train/trouser/00011.png", 11), ("test/ankle boot/00009.png", 9)):
        with Image.open(found[name]) as image:
            assert image.mode == "L" and image.size == (28, 28) and image.getextrema() == (level, level)
    with pytest.raises(UserError, match="exists already"):
        start(monkeypatch, f"--output={out}", f"--downloads={package}")


def test_an_interrupted_run_leaves_nothing_that_looks_complete(package, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    out, arguments = tmp_path / "out", (f"--output={tmp_path / 'out'}", f"--downloads={package}")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fashion.Progress, "add", interrupted)  # after the first image
        start(monkeypatch, *arguments)
    assert not out.exists()
    start(monkeypatch, *arguments)
    assert len(list(out.rglob("*.png"))) == 30 and not out.with_name("out.partial").exists()


def test_folders_that_cannot_be_made_are_named_before_any_download(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match=r"cannot be made .*; give another --output"):
        start(monkeypatch, f"--output={file}/out", f"--downloads={tmp_path}")
    with pytest.raises(UserError, match=r"file cannot be made .*; give another --downloads"):
        start(monkeypatch, f"--output={tmp_path}/out", f"--downloads={file}")


def test_a_damaged_file_is_named(tmp_path):
    whole = gzip.decompress(idx(np.zeros((3, 4), np.uint8)))
    for name, data in (("short", whole[:-1]), ("floats", whole[:2] + b"\x0d" + whole[3:])):
        (tmp_path / name).write_bytes(gzip.compress(data))
        with pytest.raises(UserError, match=f"{name} is not an IDX file"):
            fashion.read_idx(tmp_path / name)
