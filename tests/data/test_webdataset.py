"""Images in tar files: what is read, the index, and what is refused."""

import io
import json
import os
import pickle
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

from sparse_vis.data import tar_index
from sparse_vis.data.address import expand
from sparse_vis.data.decode import decode
from sparse_vis.data.sources import open_input
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import say_once

pytestmark = pytest.mark.fast


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (9, 8), (value,) * 3).save(file, "PNG")
    return file.getvalue()


def write(path, members, format=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(numbers, label=lambda n: [("cls", b"%d" % (n % 3))]):
    """Members of a sample for each number: its image and its labels."""
    return [
        (f"{n:04d}.{extension}", data) for n in numbers for extension, data in [("png", png(n)), *label(n)]
    ]


def values(source):
    return [int(decode(source[i])[0, 0, 0]) for i in range(len(source))]


@pytest.mark.parametrize(
    "pattern",
    [
        "a",
        "x-{000..012}.tar",
        "{8..11}",
        "{3..1}",
        "{a,b,}-{1..2}",
        "{09..11}",
        "{a,{b,c}x}",
        "{a",
        "{split}",
    ],
)
def test_braces_are_those_of_the_shell(pattern):
    shell = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True)
    assert expand(pattern) == shell.stdout.splitlines()


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_images_of_several_tars_in_order_with_labels(tmp_path, format, capsys):
    long = f"{'d' * 90}/{'n' * 60}.png" if format != tarfile.USTAR_FORMAT else "d/n.png"
    write(tmp_path / "t-00.tar", samples(range(4)), format)
    write(tmp_path / "t-01.tar", [*samples(range(4, 6)), (long, png(6)), ("0007.txt", b"no image")], format)
    found = open_input(f"webdataset:{tmp_path}/t-{{00..01}}.tar")
    assert values(found) == list(range(7)) and found.classes == ("0", "1", "2")
    assert [found[i]["label"] for i in range(7)] == [0, 1, 2, 0, 1, 2, -1]
    assert (
        found[5]["name"] == found.name_of(5) == "t-01.tar/0005.png" and found[6]["name"] == f"t-01.tar/{long}"
    )
    assert found[3]["image"] == png(3)
    assert found.left_out == {".txt": 1, tar_index.WITHOUT: 1}
    assert "indexing tars: 1/1 MB" in capsys.readouterr().out
    again = open_input(f"webdataset:{tmp_path}/t-*.tar")  # the same tars
    assert "indexing" not in capsys.readouterr().out and again.images_sha256 == found.images_sha256
    copy = pickle.loads(pickle.dumps(found))
    assert values(copy) == list(range(7)) and len(pickle.dumps(found)) < 5000
    with pytest.raises(IndexError):
        found[7]


def test_a_split_is_part_of_the_names(tmp_path):
    for split, numbers in (("train", range(3)), ("test", range(3, 5))):
        write(tmp_path / f"{split}-0.tar", samples(numbers))
    pattern = f"webdataset:{tmp_path}/{{split}}-{{0..0}}.tar"
    assert values(open_input(pattern, split="test")) == [3, 4]
    with pytest.raises(UserError, match=r"has a \{split\}; set --split, which replaces it"):
        open_input(pattern)
    with pytest.raises(UserError, match=r"has no \{split\}; set --split= \(empty\), or write"):
        open_input(f"webdataset:{tmp_path}/train-0.tar", split="train")


def test_labels_in_json_and_members_that_are_named(tmp_path):
    def label(n):
        return [("json", json.dumps({"label": n, "kind": "ab"[n % 2]}).encode()), ("mask.png", png(99))]

    tar = write(tmp_path / "t.tar", samples((10, 9, 8), label))
    found = open_input(f"webdataset:{tar}")
    assert found.classes == ("8", "9", "10") and [found[i]["label"] for i in range(3)] == [2, 1, 0]
    named = open_input(f"webdataset:{tar}#label=kind,image=mask.png")
    assert named.classes == ("a", "b") and values(named) == [99] * 3
    assert [named[i]["label"] for i in range(3)] == [0, 1, 0]
    none = open_input(f"webdataset:{tar}#label=")
    assert none.classes == () and "label" not in none[0]


def test_the_index_may_lie_elsewhere_and_is_made_again_for_changed_tars(tmp_path, capsys):
    tar = write(tmp_path / "tars" / "t.tar", samples(range(3)))
    before = open_input(f"webdataset:{tar}", data_dir=str(tmp_path / "own"))
    assert before.index.parent == tmp_path / "own" and [p.name for p in tar.parent.iterdir()] == ["t.tar"]
    write(tar, samples(range(20)))
    after = open_input(f"webdataset:{tar}", data_dir=str(tmp_path / "own"))
    assert values(after) == list(range(20)) and after.images_sha256 != before.images_sha256
    note = f"note: t.tar has changed, so its index {after.index} is made again"
    assert note in capsys.readouterr().out
    size = tar.stat().st_size
    write(tar, samples(reversed(range(20))))  # of the same size
    os.utime(tar, ns=(0, 1))
    say_once.cache_clear()
    after = open_input(f"webdataset:{tar}", data_dir=str(tmp_path / "own"))
    assert values(after) == list(range(20))[::-1] and tar.stat().st_size == size
    assert note in capsys.readouterr().out
    data = bytearray(after.index.read_bytes())
    data[-100] ^= 1
    after.index.write_bytes(data)
    after = open_input(f"webdataset:{tar}", data_dir=str(tmp_path / "own"))
    assert values(after) == list(range(20))[::-1]
    assert "is damaged and is made again" in capsys.readouterr().out
    os.truncate(tar, 2000)  # while it is read
    with pytest.raises(
        UserError, match=r"t\.tar' is shorter than before, so 't\.tar/0009\.png' is cut; restore"
    ):
        after[10]


def test_an_index_of_a_million_is_small_and_is_not_loaded_to_find_one(tmp_path, monkeypatch):
    """By the size of its parts: a name as in ImageNet, and 32 bytes."""
    count, data = 20_000, png(0)
    members = [(f"n01440764_{i:08d}.png", 1536 * i, len(data), i % 10) for i in range(count)]
    monkeypatch.setattr(tar_index, "_samples", lambda *_: iter(members))
    tar = write(tmp_path / "t.tar", [])
    tar_index.build(tmp_path / "index", [str(tar)], ["t.tar"], None, None)
    assert (tmp_path / "index").stat().st_size * 1_000_000 / count < 70e6  # the limit is 150 MB
    index = tar_index.read(tmp_path / "index")
    assert isinstance(index.samples, np.memmap) and isinstance(index.names, np.memmap)
    assert index.samples[12_345].tolist() == (1536 * 12_345, len(data), 22 * 12_346, 0, 5)


def compressed(path):
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))


def cut(path):
    os.truncate(write(path, samples(range(9))), 5 * 1024 + 100)


def without_end(path):
    # A member takes two blocks of 512 bytes: header and content; here the last one is complete.
    os.truncate(write(path, samples(range(9), lambda n: [])), 4 * 1024)


def damaged(path):
    with write(path, samples(range(9))).open("rb+") as file:
        file.seek(4 * 1024)
        file.write(b"\xff" * 512)


def twice(path):
    path.write_bytes(2 * write(path, samples(range(2))).read_bytes())


@pytest.mark.parametrize(
    ("make", "address", "message"),
    [
        (None, "t-{0..1}.tar", r"^tar '.*/t-0\.tar' does not exist; copy it there, or correct --input\.$"),
        (lambda path: path.mkdir(), "t.tar", r"t\.tar' is a folder, not a tar; give e\.g\. webdataset:"),
        (lambda path: path.touch(), "t.tar", r"t\.tar' is damaged \(empty file\); copy it again"),
        (lambda path: path.write_text("no" * 999), "t.tar", r"t\.tar' is damaged \(.*\); copy it again"),
        (compressed, "t.tar", r"is compressed \(gzip\), and cannot be read at random; decompress it\.$"),
        (cut, "t.tar", r"t\.tar' is damaged \(.*\); copy it again, or leave it out\.$"),
        (without_end, "t.tar", r"t\.tar' is damaged \(its end is missing\); copy it again"),
        (damaged, "t.tar", r"t\.tar' is damaged \(no header at byte 4096\); copy it again"),
        (twice, "t.tar", r"t\.tar' is damaged \(another archive follows its end\)"),
        (lambda path: write(path, []), "t.tar", r"holds no image \(\.jpg, .*; only nothing\); name"),
        (lambda path: write(path, [("a.heic", b"")]), "t.tar", r"only 1 \.heic, 1 samples without an"),
        (lambda path: write(path, samples([1])), "t.tar#image=jpg", r"no image \(\.jpg; only 1 \.png, "),
        (lambda path: write(path, samples([1])), "t.tar#label=kind", "no sample .* has a label 'kind'"),
        (lambda path: write(path, samples([1])), "t.tar#mask=x", "names the column 'mask', which is unknown"),
        (lambda path: write(path, samples([1])), "{t,t}.tar", "names a tar twice; correct --input"),
        (lambda path: write(path, samples([1], lambda n: [("jpg", png(2))])), "t.tar",
         r"several images of one name, '0001\.png' and '0001\.jpg'; name the extension .*#image=jpg\.$"),
        (lambda path: write(path, samples([1], lambda n: [("json", b"{")])), "t.tar",
         r"member '0001\.json' of '.*' is not a label \(Expecting .*\); name a JSON key"),
        (lambda path: write(path, samples([1], lambda n: [("json", b'{"label": [1]}')])), "t.tar",
         r"is not a label \(its label is \[1\], neither a number nor a string\)"),
    ],
)  # fmt: skip
def test_a_wrong_tar_is_one_sentence_and_leaves_no_index(tmp_path, make, address, message):
    if make:
        make(tmp_path / "t.tar")
    with pytest.raises(UserError, match=message) as error:
        open_input(f"webdataset:{tmp_path}/{address}")
    assert "\n" not in str(error.value) and "config" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"t.tar"}


def test_an_index_that_cannot_be_written_is_said_before_the_tars_are_read(tmp_path, monkeypatch):
    tar = write(tmp_path / "t.tar", samples(range(2)))
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tar_index, "build", None)
    with pytest.raises(
        UserError, match=r"\.tars cannot be written \(Permission denied\); set --data-dir to a"
    ):
        open_input(f"webdataset:{tar}")
