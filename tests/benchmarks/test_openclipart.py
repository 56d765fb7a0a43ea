"""Pictures of a package in category folders: a tiny package of the same form."""

import subprocess
import sys

import pytest
from PIL import Image

from benchmarks.evidence import openclipart
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast


@pytest.fixture
def package(tmp_path):
    tree = tmp_path / "tree"
    png = tree / "usr/share/openclipart/png"
    for category, count in {"animals": 50, "logos": 49, "special": 60}.items():
        for i in range(count):
            file = png / category / f"part{i % 2}" / f"{i:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 3 if i == 7 else 20), (i, 0, 0)).save(file)
    control = tree / "DEBIAN" / "control"
    control.parent.mkdir()
    control.write_text(
        "Package: openclipart-png\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    )
    subprocess.run(["dpkg-deb", "--build", tree, tmp_path / "a.deb"], check=True, capture_output=True)
    return tmp_path / "a.deb"


def start(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["openclipart.py", *map(str, arguments)])
    openclipart.main()


def test_large_categories_are_split_and_others_left_out(package, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    start(monkeypatch, f"--output={out}", f"--package={package}")
    assert [p.name for p in sorted((out / "train").iterdir())] == ["animals"]
    names = {part: {p.name for p in (out / part).rglob("*.png")} for part in ("train", "validation", "test")}
    assert {part: len(found) for part, found in names.items()} == {"train": 29, "validation": 10, "test": 10}
    assert len(set.union(*names.values())) == 49, "a line of 20 x 3 pixels is no picture"
    assert "part0-000.png" in names["test"] and "part0-002.png" in names["validation"]
    assert capsys.readouterr().out.splitlines()[-1] == "all: 10 test, 10 validation, 29 train, 1 too thin"
    with pytest.raises(UserError, match="exists already"):
        start(monkeypatch, f"--output={out}", f"--package={package}")


def test_pictures_are_reduced_on_white(tmp_path):
    drawing = Image.new("RGBA", (400, 200), (0, 0, 0, 0))
    drawing.paste((255, 0, 0, 255), (0, 0, 200, 200))
    drawing.save(tmp_path / "in.png")
    assert openclipart.reduce(tmp_path / "in.png", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as reduced:
        assert reduced.mode == "RGB" and reduced.size == (128, 64)
        assert reduced.getpixel((20, 32)) == (255, 0, 0) and reduced.getpixel((110, 32)) == (255, 255, 255)


def test_another_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "b.deb").write_bytes(b"no package")
    with pytest.raises(UserError, match=r"\(failed: dpkg-deb\).* --package=FILE\.deb"):
        start(monkeypatch, f"--output={tmp_path / 'out'}", f"--package={tmp_path / 'b.deb'}")
    with pytest.raises(UserError, match=r"absent\.deb is no file; give the \.deb"):
        start(monkeypatch, f"--output={tmp_path / 'out'}", f"--package={tmp_path / 'absent.deb'}")
