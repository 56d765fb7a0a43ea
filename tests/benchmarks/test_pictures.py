"""The data set of real pictures: cut-outs of a made-up tree of unpacked packages."""

import collections
import pathlib

import numpy as np
import pytest
from PIL import Image

from benchmarks.evidence import pictures
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast


def write(path: pathlib.Path, side: int, covered: float, colour: int, mode: str = "RGBA") -> None:
    """A picture whose left part is opaque in one colour, in a transparent frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = np.zeros((side + 20, side + 20, 4), np.uint8)
    drawn[10:-10, 10:-10, :3] = colour
    drawn[10:-10, 10 : 10 + round(covered * side), 3] = 255
    drawn[-11, -11, 3] = 255  # the bounding box is the whole square, whatever is covered
    Image.fromarray(drawn).convert(mode).save(path)


def test_objects_are_cut_out_and_split_by_name(tmp_path, capsys):
    clipart, stamps = tmp_path / pictures.CLIPART, tmp_path / pictures.STAMPS
    write(clipart / "animals" / "birds" / "duck_01.png", 60, 0.5, 10)
    write(clipart / "animals" / "birds" / "duck_02.png", 60, 0.5, 20)
    write(clipart / "animals" / "copy.png", 60, 0.5, 10)
    write(clipart / "animals" / "fish" / "duck_02.png", 60, 0.5, 25)  # which replaces the other
    write(clipart / "animals" / "scribble.png", 60, 0.1, 30)
    write(clipart / "animals" / "poster.png", 60, 1, 40)
    write(clipart / "animals" / "photo.png", 60, 0.5, 50, mode="RGB")
    write(clipart / "animals" / "dot.png", 8, 0.5, 60)
    write(clipart / "transportation" / "roadsigns" / "stop.png", 60, 0.5, 70)
    write(clipart / "transportation" / "stop_sign.png", 60, 0.5, 80)
    write(clipart / "transportation" / "car.png", 400, 0.5, 90)
    for number, name in enumerate(("a", "b", "c", "d")):  # of all stamps, sorted, only the even ones
        write(stamps / "animals" / f"{name}.png", 60, 0.5, 100 + number)
    found = pictures.write_objects(tmp_path, tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    left_out = {"lines": 1, "rectangle": 1, "opaque": 1, "thin": 1, "twice": 1, "of the same name": 1}
    assert {name: found[name] for name in left_out} == left_out
    written = {path.stem: path for path in (tmp_path / "out" / "objects").rglob("*.png")}
    assert sum(found[split] for split in ("train", "validation", "test")) == len(written)
    assert sorted(written) == ["a", "c", "car", "duck_01", "duck_02"]
    assert written["duck_01"].parent == written["duck_02"].parent  # variants of one drawing
    assert written["car"].parent.name == "vehicles" and written["a"].parent.name == "animals"
    assert len(lines) == len(pictures.CATEGORIES) and lines[0].startswith("animals ")
    with Image.open(written["car"]) as car:
        assert car.mode == "RGBA" and max(car.size) == pictures.OBJECT_SIDE
        alpha = np.asarray(car.getchannel("A")) > 127
    assert 0.49 < alpha.mean() < 0.52 and alpha[:, :90].all() and not alpha[:-5, 100:].any()


def test_splits_take_a_fifth_each():
    counts = collections.Counter(
        pictures.split_of(f"{chr(97 + i % 26)}{chr(97 + i // 26)}x") for i in range(600)
    )
    assert set(counts) == {"train", "validation", "test"} and 0.5 < counts["train"] / 600 < 0.7
    assert pictures.split_of("lion_01") == pictures.split_of("Lion_77_big") == pictures.split_of("lion")


def test_packages_that_cannot_be_unpacked_are_one_sentence(tmp_path):
    for name in pictures.PACKAGES:
        (tmp_path / f"{name}_1_all.deb").write_bytes(b"no package")
    with pytest.raises(UserError, match=r"cannot be fetched or unpacked \(failed: dpkg-deb\).*--downloads"):
        pictures.unpack(tmp_path, tmp_path / "tree")


def test_the_tool_writes_all_splits(tmp_path, monkeypatch, capsys):
    def unpack(downloads, tree):
        for i in range(40):
            write(tree / pictures.CLIPART / "food" / f"{chr(97 + i // 26)}{chr(97 + i % 26)}.png", 60, 0.5, i)
        for folder, names in pictures.WALLPAPERS.items():
            for name in names.split():
                write(tree / folder / f"{name}_x.png", 60, 1, 0, mode="RGB")
        for name in pictures.SCIKIT_IMAGE.split():
            write(tree / "skimage" / "data" / f"{name}.png", 60, 1, 0, mode="RGB")

    monkeypatch.setattr(pictures, "unpack", unpack)
    monkeypatch.setattr("sys.argv", ["pictures", f"--output={tmp_path}/out"])
    pictures.main()
    counts = {
        (kind, split): len([f for f in (tmp_path / "out" / kind / split).rglob("*") if f.is_file()])
        for kind in ("objects", "photographs")
        for split in ("train", "validation", "test")
    }
    assert sum(counts[key] for key in counts if key[0] == "objects") == 40 and min(counts.values()) > 0
    assert (tmp_path / "out" / "photographs" / "test" / "china.jpg").exists()
    assert not (tmp_path / "out" / "photographs" / "train" / "camera.jpg").exists()
    assert capsys.readouterr().out.splitlines()[-1].startswith("photographs: ")
    with pytest.raises(UserError, match="exists already"):
        pictures.main()
