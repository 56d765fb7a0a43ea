import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import sparse_vis
from sparse_vis.commands import extract as command
from sparse_vis.commands import pack, shards
from sparse_vis.data.records import load_image
from sparse_vis.data.sources import FolderSource
from sparse_vis.runtime.errors import UserError, command_line
from sparse_vis.runtime.skipped import MAX_PIXELS
from tests.main_process import environment
from tests.tiny_checkpoint import PATCH, SIZE, TOKENS, WIDTH, write_checkpoints

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = dict(letterbox=False, 
    name=None, split=None, data_dir=None, outputs=("cls", "sparse", "spatial"), dtype="float32", resize=None,
    batch=4, shard_size=3, threads=2, on_error="stop", max_pixels=MAX_PIXELS,
)  # fmt: skip


def image(index, width=40, height=50):
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Eight images, the last ones in a subfolder; wide, high and exactly the size that is resized to."""
    for index in range(8):
        path = tmp_path / "images" / ("z" if index > 5 else ".") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(index, 30 + 9 * index, 50 - 2 * index)).save(path)
    return tmp_path / "images"


def run(workdir, folder, output, **changes):
    given = {"checkpoint": str(workdir), "images": str(folder), "output": output, **SETTINGS, **changes}
    command.extract(argparse.Namespace(**given))


def read(output):
    """Rows of all shards in order, by name, and the shards' schema."""
    tables = [pq.read_table(path) for path in sorted(output.glob("*.parquet"))]
    table = pa.concat_tables(tables)
    return {row["name"]: row for row in table.to_pylist()}, table.schema


def prepared(path):
    """Short side 37 px (256/224 of 32), centre 32 px, by Pillow alone."""
    picture = Image.open(path)
    scale = 37 / min(picture.size)
    picture = picture.resize(tuple(round(side * scale) for side in picture.size), Image.Resampling.BICUBIC)
    left, top = (picture.width - SIZE) // 2, (picture.height - SIZE) // 2
    return np.asarray(picture.crop((left, top, left + SIZE, top + SIZE)))


def expect(workdir, folder, names):
    model, params = sparse_vis.load(workdir)
    return sparse_vis.encode(model, params, np.stack([prepared(folder / name) for name in names]))


def test_rows_are_the_encoder_s_output_in_sorted_order(workdir, folder, tmp_path, capsys):
    run(workdir, folder, tmp_path / "out", outputs=command.OUTPUTS)
    rows, schema = read(tmp_path / "out")
    names = [f"{i}.png" for i in range(6)] + ["z/6.png", "z/7.png"]
    assert list(rows) == names
    assert [(rows[n]["width"], rows[n]["height"]) for n in names] == [
        (30 + 9 * i, 50 - 2 * i) for i in range(8)
    ]
    assert [rows[n]["label"] for n in names] == [-1] * 6 + [0] * 2  # z is the only class
    features = expect(workdir, folder, names)
    patches = (SIZE // PATCH) ** 2
    shapes = dict(
        cls=(1, WIDTH), sparse=(TOKENS, WIDTH), dense=(patches, WIDTH), spatial=(patches, TOKENS),
        lowrank=(patches, WIDTH),
    )  # fmt: skip
    for output, shape in shapes.items():
        field = schema.field(output)
        assert field.type == pa.list_(pa.float32(), shape[0] * shape[1])
        assert json.loads(field.metadata[b"shape"]) == list(shape)
        found = np.array([rows[name][output] for name in names]).reshape(-1, *shape)
        np.testing.assert_allclose(found, getattr(features, output), rtol=1e-5, atol=1e-5)
    shown = capsys.readouterr().out
    assert "8/8 images" in shown and "images/s  ETA 0:00:00" in shown
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["step"] == 12 and manifest["grid"] == [4, 4] and manifest["classes"] == ["z"]
    assert {name: tuple(shape) for name, shape in manifest["outputs"].items()} == shapes
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"features-0000{i}-of-00003.{kind}" for i in range(3) for kind in ("json", "parquet")),
        "manifest.json", "skipped.txt",
    ]  # fmt: skip


def test_half_precision_and_the_documented_reader(workdir, folder, tmp_path, monkeypatch):
    run(workdir, folder, tmp_path / "features", outputs=("sparse", "spatial"), dtype="float16")
    rows, schema = read(tmp_path / "features")
    assert schema.field("sparse").type.value_type == pa.float16() and "cls" not in schema.names
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "extraction.md").read_text(), re.S).group(1)
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(snippet, scope)
    assert scope["names"] == list(rows)
    features = expect(workdir, folder, rows)
    for output in ("sparse", "spatial"):
        assert scope[output].dtype == np.float16
        np.testing.assert_allclose(scope[output], getattr(features, output), rtol=2e-3, atol=1e-3)


def test_bad_images_stop_with_their_name_or_are_skipped_and_listed(workdir, folder, tmp_path):
    good = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:300])
    (folder / "4b.jpg").write_text("not an image")
    Image.fromarray(image(0)[..., 0].astype(np.float32)).save(folder / "4c.tif")
    with pytest.raises(UserError, match=r"'4b.jpg'.*not an image.*--on-error=skip"):
        run(workdir, folder, tmp_path / "out", shard_size=2)
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert len(finished) == 2 and not list((tmp_path / "out").glob("*.partial"))
    # The two bad ones beside 4.png and 5.png: one shard has a single row, another none.
    run(workdir, folder, tmp_path / "out", shard_size=2, on_error="skip")
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())
    assert list(read(tmp_path / "out")[0]) == [name for name in good if name != "5.png"]
    lines = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["4b.jpg", "4c.tif", "5.png"]
    assert "image '4c.tif' has 32-bit floating-point numbers" in lines[1]
    # Nothing is left to do: the list of skipped images comes from the shards.
    (tmp_path / "out" / "skipped.txt").unlink()
    run(workdir, folder, tmp_path / "out", shard_size=2, on_error="skip")
    assert (tmp_path / "out" / "skipped.txt").read_text().splitlines() == lines


def test_an_extraction_of_no_usable_image_fails_and_continues_when_they_are_repaired(
    workdir, folder, tmp_path, monkeypatch
):
    good = {path: path.read_bytes() for path in folder.rglob("*.png")}
    for path in good:
        path.write_text("no image")
    flags = f"--checkpoint={workdir} --input={folder} --output={tmp_path / 'out'} --on-error=skip --batch=4"
    monkeypatch.setattr(sys, "argv", ["extract", *flags.split()])
    for _ in range(2):  # also when all shards are there
        with pytest.raises(
            SystemExit,
            match=r"^error: none of the 8 images can be used; the first one: cannot decode '0\.png'",
        ):
            command_line(command.main)
    assert len((tmp_path / "out" / "skipped.txt").read_text().splitlines()) == 8
    for path, data in good.items():
        path.write_bytes(data)
    command_line(command.main)
    assert len(read(tmp_path / "out")[0]) == 8


@pytest.mark.fast
def test_an_image_smaller_than_a_patch_is_enlarged(tmp_path):
    Image.fromarray(image(0, 90, PATCH - 1)).save(tmp_path / "a.png")
    found = load_image(FolderSource(str(tmp_path)), 0, size=SIZE, short_side=37)
    assert found[:3] == ("a.png", PATCH - 1, 90)
    np.testing.assert_array_equal(found.pixels, prepared(tmp_path / "a.png"))


@pytest.mark.fast
def test_a_letterboxed_image_is_whole(tmp_path):
    whole = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    Image.fromarray(whole).save(tmp_path / "a.png")
    found = load_image(FolderSource(str(tmp_path)), 0, size=16, letterbox=True)
    assert found[:3] == ("a.png", 8, 16)
    np.testing.assert_array_equal(found.pixels[4:12], whole)
    assert (found.pixels[:4] == [124, 116, 104]).all() and (found.pixels[12:] == [124, 116, 104]).all()


def test_a_letterboxed_extraction_is_another_one(workdir, folder, tmp_path):
    run(workdir, folder, tmp_path / "out", letterbox=True)
    with pytest.raises(UserError, match="letterbox"):
        run(workdir, folder, tmp_path / "out")
    with pytest.raises(UserError, match="leave out either --resize or --letterbox"):
        run(workdir, folder, tmp_path / "new", letterbox=True, resize=64)


def test_another_extraction_s_output_is_refused(workdir, folder, tmp_path):
    run(workdir, folder, tmp_path / "out")
    for changes, sentence in (
        (dict(dtype="float16"), "dtype: float32 -> float16"),
        (dict(outputs=("cls",)), "outputs.sparse"),
        (dict(resize=40), "resize: 37 -> 40"),
        (dict(shard_size=5), "shard_size: 3 -> 5"),
    ):
        with pytest.raises(UserError, match=sentence):
            run(workdir, folder, tmp_path / "out", **changes)
    with pytest.raises(UserError, match="step: 12 -> 3"):
        run(workdir / "checkpoints" / "3", folder, tmp_path / "out")
    other = tmp_path / "other"
    write_checkpoints(other, {12: 5})
    with pytest.raises(UserError, match="weights_crc32"):
        run(other, folder, tmp_path / "out")
    os.rename(folder / "0.png", folder / "0b.png")
    with pytest.raises(UserError, match=r"images_sha256.*use the same ones, or give --output another folder"):
        run(workdir, folder, tmp_path / "out")
    os.rename(folder / "0b.png", folder / "0.png")
    shard = tmp_path / "out" / "features-00001-of-00003.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000] + bytes([whole[1000] ^ 4]) + whole[1001:])
    with pytest.raises(UserError, match=r"features-00001-of-00003.parquet is damaged.*delete it"):
        run(workdir, folder, tmp_path / "out")


def test_shards_of_replaced_images_are_written_again(workdir, folder, tmp_path, capsys):
    good = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(good[: len(good) // 2])
    run(workdir, folder, tmp_path / "out", on_error="skip")
    shards = sorted((tmp_path / "out").glob("*.parquet"))
    before = [path.stat().st_mtime_ns for path in shards]
    (folder / "1.png").write_bytes(good)  # repaired: in the first shard
    Image.fromarray(image(99)).save(folder / "z" / "7.png")  # replaced: in the last one
    run(workdir, folder, tmp_path / "out")
    assert [a == path.stat().st_mtime_ns for a, path in zip(before, shards, strict=True)] == [
        False,
        True,
        False,
    ]
    assert capsys.readouterr().out.count("have changed; it is written again") == 2
    run(workdir, folder, tmp_path / "fresh")
    assert read(tmp_path / "out")[0] == read(tmp_path / "fresh")[0] and "1.png" in read(tmp_path / "out")[0]


@pytest.mark.fast
def test_folders_that_cannot_be_used(workdir, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"gone' does not exist; give --input"):
        run(workdir, tmp_path / "gone", tmp_path / "out")
    with pytest.raises(UserError, match=r"holds no image.*--input"):
        run(workdir, tmp_path / "empty", tmp_path / "out")
    (tmp_path / "images").mkdir()
    Image.fromarray(image(0)).save(tmp_path / "images" / "0.png")
    with pytest.raises(UserError, match="nowhere does not exist"):
        run(tmp_path / "nowhere", tmp_path / "images", tmp_path / "out")
    with pytest.raises(UserError, match="contains other files"):
        run(workdir, tmp_path / "images", tmp_path / "images")
    for below in ("0.png", "0.png/x"):
        flags = [f"--{name}={tmp_path / 'images'}" for name in ("checkpoint", "input", "output")]
        monkeypatch.setattr(sys, "argv", ["extract", *flags[:2], f"{flags[2]}/{below}"])
        with pytest.raises(
            UserError, match=r"cannot be written \(.*0.png is a file\); give another --output"
        ):
            command.main()
    with pytest.raises(UserError, match=r"0.png' is a file; give --input the folder"):
        run(workdir, tmp_path / "images" / "0.png", tmp_path / "out")
    with pytest.raises(UserError, match="--resize=31 is smaller"):
        run(workdir, tmp_path / "images", tmp_path / "out", resize=31)
    with pytest.raises(UserError, match=r"--resize=8193 is too large; it must be at most 8192"):
        run(workdir, tmp_path / "images", tmp_path / "out", resize=8193)
    for changes, sentence in (
        (
            dict(split="train"),
            r"--split=train is only for an --input that begins with tfds: or .*leave it out",
        ),
        (dict(data_dir="x"), r"--data-dir=x is only for an --input that begins with tfds: or .*leave it out"),
    ):
        with pytest.raises(UserError, match=sentence):
            run(workdir, tmp_path / "images", tmp_path / "out", **changes)
    with pytest.raises(UserError, match="--input=tfds:mnist needs --data-dir too"):
        run(workdir, "tfds:mnist", tmp_path / "out", split="train")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    for text in ("{", "[]"):
        (tmp_path / "out" / "manifest.json").write_text(text)
        with pytest.raises(UserError, match="not the manifest"):
            run(workdir, tmp_path / "images", tmp_path / "out")


@pytest.mark.fast
def test_features_that_are_not_finite_are_refused(tmp_path):
    schema = shards.make_schema({"cls": [1, 2]}, "float16")
    rows = {"name": ["a.png"], "height": [9], "width": [9], "cls": np.array([[[1, np.inf]]], np.float16)}
    with pytest.raises(UserError, match=r"'cls'.*'a.png'.*--dtype=float32"):
        shards.write_shard(
            tmp_path / "shard.parquet", schema, iter([rows]), [], {"settings": "", "images": "", "times": ""}
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.fast
def test_command_line_prints_one_sentence(tmp_path, monkeypatch):
    arguments = [f"--checkpoint={tmp_path}", f"--input={tmp_path}", f"--output={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["extract", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command_line(command.main)
    assert str(stopped.value).startswith("error: folder") and "\n" not in str(stopped.value)
    for wrong, sentence in (
        ("--outputs=cls,spare", "'spare' is unknown"),
        ("--batch=0", "'0' is not a whole number"),
    ):
        monkeypatch.setattr(sys, "argv", ["sparse-vis extract", *arguments, wrong])
        with pytest.raises(UserError, match=rf"{sentence}.*; sparse-vis extract --help lists the flags\."):
            command.main()


def test_a_packed_folder_gives_what_its_folder_gives(workdir, folder, tmp_path):
    Image.fromarray(image(0, 90, PATCH - 1)).save(folder / "3b.png")  # enlarged to a patch
    pack.pack(images=str(folder), output=tmp_path / "packed", shard_size=3, threads=2, on_error="stop")
    for name, images in (("a", folder), ("b", tmp_path / "packed")):
        run(workdir, images, tmp_path / name, outputs=("cls", "spatial"), on_error="skip")
    (rows, schema), (expected, expected_schema) = read(tmp_path / "b"), read(tmp_path / "a")
    assert rows == expected and list(rows) == list(expected) and len(rows) == 9 and schema == expected_schema
    for file in ("skipped.txt", "manifest.json"):
        assert (tmp_path / "b" / file).read_text() == (tmp_path / "a" / file).read_text()
    shards = json.loads((tmp_path / "b" / "manifest.json").read_text())["shards"]
    assert [(shard["rows"], shard["skipped"]) for shard in shards.values()] == [(3, 0), (3, 0), (3, 0)]


class Launcher:
    """Two processes with two devices each, under launch/local.py; leaving the context ends them."""

    def __init__(self, workdir, folder, output):
        command = [
            ROOT / "launch" / "local.py",
            "--processes=2",
            "--devices=2",
            "--tool=extract",
        ]
        command += ["--", "--shard-size=4", "--batch=4", "--threads=2"]
        command += [f"--checkpoint={workdir}", f"--input={folder}", f"--output={output}"]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=ROOT, env=environment(), **pipes
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()  # which it passes on
        self.process.communicate()

    def until(self, condition):
        deadline = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def kill_first(self):
        """SIGKILL to process 0 alone."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=True
        )
        (first,) = (
            int(pid)
            for pid in listed.stdout.split()
            if b",2,0\0" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(first, signal.SIGKILL)

    def end(self):
        shown, _ = self.process.communicate(timeout=300)
        return self.process.returncode, shown


def assert_same(output, expected):
    """Rows and manifests of two extractions are equal, up to the rounding of other batches."""
    (rows, schema), (expected_rows, expected_schema) = read(output), read(expected)
    assert list(rows) == list(expected_rows) and schema == expected_schema
    for name in ("cls", "sparse", "spatial"):
        found, wanted = (np.array([row[name] for row in x.values()]) for x in (rows, expected_rows))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (output, expected)]
    for manifest in manifests:
        del manifest["checksum"]
        for shard in manifest["shards"].values():
            del shard["bytes"], shard["sha256"]
    assert manifests[0] == manifests[1]
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in expected.iterdir())


def test_two_processes_share_the_shards_and_one_killed_the_same_command_continues(workdir, tmp_path):
    folder, output, alone = tmp_path / "images", tmp_path / "out", tmp_path / "alone"
    folder.mkdir()
    names = [f"{index:02d}.png" for index in range(18)]
    for index, name in enumerate(names):
        Image.fromarray(image(index)).save(folder / name)
    run(workdir, folder, alone, shard_size=4)
    # Pipes that nobody writes to stop process 0 in its second shard and process 1 in its first.
    for name in (names[5], names[9]):
        (folder / name).rename(tmp_path / name)
        os.mkfifo(tmp_path / f"pipe-{name}")
        (folder / name).symlink_to(tmp_path / f"pipe-{name}")
    first = output / "features-00000-of-00005.parquet"
    with Launcher(workdir, folder, output) as launched:
        launched.until(first.exists)
        launched.kill_first()
        status, shown = launched.end()
    assert status == 1 and "process 0 of 2 was killed by SIGKILL" in shown
    assert list(output.glob("*.parquet")) == [first] and not (output / "skipped.txt").exists()
    assert "shards" not in json.loads((output / "manifest.json").read_text())
    for name in (names[5], names[9]):
        (tmp_path / name).replace(folder / name)
    then = first.stat().st_mtime_ns
    with Launcher(workdir, folder, output) as launched:
        status, shown = launched.end()
    assert status == 0, shown
    assert "features, process 0 of 2: 10/10 images" in shown
    assert shown.endswith(f"{output}: 18 images in 5 shards, 0 skipped\n")
    assert first.stat().st_mtime_ns == then
    assert_same(output, alone)
    # Another number of processes finishes what is missing.
    (output / "features-00001-of-00005.parquet").unlink()
    run(workdir, folder, output, shard_size=4)
    assert first.stat().st_mtime_ns == then
    assert_same(output, alone)


def test_a_model_of_a_release_is_named(folder, tmp_path):
    """Released weights are read as everywhere else; without a name the error lists the models."""
    golden = ROOT / "tests" / "golden"
    with pytest.raises(UserError, match="pixel_p16"):
        run(golden, folder, tmp_path / "a")
    run(golden, folder, tmp_path / "b", name="pixel_p16", outputs=("cls",))
    rows, _ = read(tmp_path / "b")
    encoder = sparse_vis.load(golden, "pixel_p16")[0].encoder
    assert len(rows) == 8 and len(rows["0.png"]["cls"]) == encoder.sizes.width
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["image_size"] == encoder.image_size


def test_other_labels_are_other_settings_and_without_classes_there_is_no_column(workdir, folder, tmp_path):
    table = folder / "table.csv"

    def write(labels):
        table.write_text("path,label\n" + "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels)))

    write("abab")
    run(workdir, f"table:{table}", tmp_path / "out", outputs=("cls",))
    rows, _ = read(tmp_path / "out")
    assert [row["label"] for row in rows.values()] == [0, 1, 0, 1]
    write("abba")
    with pytest.raises(UserError, match=r"shards of other images or settings \(labels_sha256: "):
        run(workdir, f"table:{table}", tmp_path / "out", outputs=("cls",))
    run(workdir, f"table:{table}#label=", tmp_path / "none", outputs=("cls",))
    assert "label" not in read(tmp_path / "none")[1].names
