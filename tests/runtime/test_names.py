"""Names of files that are not UTF-8, or hold line breaks and tabs, in whatever is written about them."""

import importlib
import json
import os
import pathlib
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sparse_vis.commands.shards import fingerprint, finish, make_schema, write_shard
from sparse_vis.data.decode import decode
from sparse_vis.data.sources import FolderSource, announce
from sparse_vis.report.images import read_images
from sparse_vis.runtime.errors import UserError, command_line
from sparse_vis.runtime.files import write_whole
from sparse_vis.runtime.names import escaped, unescaped
from sparse_vis.runtime.progress import say_once

pytestmark = pytest.mark.fast

# Bytes of a name, and what is written.
WRITTEN = {
    b"plain/\xc3\xa9 (1).jpg": "plain/é (1).jpg",
    b"Mu\xf1oz.jpg": r"Mu\xf1oz.jpg",
    b"a\nb\tc\x7f.png": r"a\x0ab\x09c\x7f.png",
    rb"a\xf1.png": r"a\\xf1.png",
    b"\\\xff": r"\\\xff",
    "\u2028\x85".encode(): r"\xe2\x80\xa8\xc2\x85",
}


def test_the_escape_is_one_line_of_utf8_and_can_be_undone():
    for raw, text in WRITTEN.items():
        assert escaped(os.fsdecode(raw)) == text and os.fsencode(unescaped(text)) == raw
    rng = np.random.default_rng(0)
    seen = {}
    for _ in range(2000):
        raw = bytes(rng.choice(list(b"\\x0af1\n\xc3\xb1\xf1\xe2\x80\xa8z"), rng.integers(0, 9)))
        text = escaped(os.fsdecode(raw))
        assert os.fsencode(unescaped(text)) == raw and len(text.encode().splitlines()) <= 1
        assert len(f"{text}.".splitlines()) == 1 and seen.setdefault(text, raw) == raw


def test_shards_and_the_list_of_skipped_images_name_any_file(tmp_path):
    names = [os.fsdecode(raw) for raw in WRITTEN]
    path = tmp_path / "features-00000-of-00001.parquet"
    rows = {"name": names, "height": [1] * len(names), "width": [2] * len(names)}
    skips = [(name, f"image {name!r} is\tno\nimage") for name in names]
    about = {"settings": fingerprint({}), "images": "", "times": ""}
    write_shard(path, make_schema({}, "float32"), iter([rows]), skips, about)
    assert finish(tmp_path, {}, {path: range(2 * len(names))}) == (len(names), len(names))
    assert pq.read_table(path)["name"].to_pylist() == list(WRITTEN.values())
    lines = [line.split("\t") for line in (tmp_path / "skipped.txt").read_bytes().decode().split("\n")]
    assert lines.pop() == [""] and sorted(name for name, _ in lines) == sorted(WRITTEN.values())


def test_sentences_name_files_as_lists_do(tmp_path, capsys):
    for raw, text in ((b"Mu\xf1oz\n.png", r"Mu\xf1oz\x0a.png"), (b"'a\\b'.png", r"'a\\b'.png")):
        path = tmp_path / "c\nd" / os.fsdecode(raw)
        path.parent.mkdir(exist_ok=True)
        path.write_text("no image")
        source = FolderSource(str(tmp_path))
        say_once.cache_clear()
        announce(source)
        assert r"subfolders (c\x0ad)" in capsys.readouterr().out
        with pytest.raises(UserError, match=re.escape(rf"cannot decode 'c\x0ad/{text}' (")):
            decode(source[0])
        path.unlink()
        with pytest.raises(UserError, match=re.escape(rf"cannot read 'c\x0ad/{text}' (")):
            source[0]


def test_a_folder_s_names_reach_the_report_and_the_names_of_pictures(tmp_path):
    raw = b"Mu\xf1oz\n.png"
    Image.new("RGB", (8, 8)).save(tmp_path / os.fsdecode(raw))
    source = FolderSource(str(tmp_path))
    names = read_images(source, np.array([0]), (8, 8), "stop").names
    assert names == [r"Mu\xf1oz\x0a.png"]
    reconstruct = importlib.import_module("sparse_vis.commands.reconstruct")
    target = reconstruct.target_of(source, tmp_path)(source.names[0])
    assert os.fsencode(target.name) == raw


def test_a_text_with_a_path_that_is_not_utf8_can_be_written_and_printed(tmp_path, capfd):
    name = os.fsdecode(b"Mu\xf1oz")
    write_whole(tmp_path / "report.html", f"<p>é {name}")
    assert (tmp_path / "report.html").read_bytes() == "<p>é Mu\\udcf1oz".encode()
    command_line(lambda: print(f"wrote {name}"))
    assert capfd.readouterr().out == "wrote Mu\\udcf1oz\n"
    assert json.loads(json.dumps(name)) == name and pathlib.Path(name).name == name


@pytest.mark.fast
def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path):
    """With `--output=/dev/null`, root would lose the device."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a device or pipe"):
        write_whole(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo() and [path.name for path in tmp_path.iterdir()] == ["pipe"]
