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
from sparse_vis import extract as command
from sparse_vis.errors import UserError, command_line
from tests.tiny_checkpoint import PATCH, SIZE, TOKENS, WIDTH, write_checkpoints

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = dict(
    split=None, data_dir=None, outputs=("cls", "sparse", "spatial"), dtype="float32", resize=None, batch=4, shard_size=3, threads=2,
    on_error="stop",
)  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    write_checkpoints(path, {3: 1, 12: 2})
    return path


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
    command.extract(checkpoint=str(workdir), name=str(folder), output=output, **(SETTINGS | changes))


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
    assert manifest["step"] == 12 and manifest["grid"] == [4, 4]
    assert {name: tuple(shape) for name, shape in manifest["outputs"].items()} == shapes
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"features-0000{i}-of-00003.parquet" for i in range(3)), "manifest.json", "skipped.txt",
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
    Image.fromarray(image(0, 90, PATCH - 1)).save(folder / "4c.png")
    with pytest.raises(UserError, match=r"'4b.jpg'.*not an image.*--on-error=skip"):
        run(workdir, folder, tmp_path / "out", shard_size=2)
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert len(finished) == 2 and not list((tmp_path / "out").glob("*.partial"))
    # The two bad ones beside 4.png and 5.png: one shard has a single row, another none.
    run(workdir, folder, tmp_path / "out", shard_size=2, on_error="skip")
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())
    assert list(read(tmp_path / "out")[0]) == [name for name in good if name != "5.png"]
    lines = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["4b.jpg", "4c.png", "5.png"]
    assert "90x7 pixels, smaller than a patch of 8" in lines[1]
    # Nothing is left to do: the list of skipped images comes from the shards.
    (tmp_path / "out" / "skipped.txt").unlink()
    run(workdir, folder, tmp_path / "out", shard_size=2, on_error="skip")
    assert (tmp_path / "out" / "skipped.txt").read_text().splitlines() == lines


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
    with pytest.raises(
        UserError, match=r"images_sha256.*repeat its settings, or give --output another folder"
    ):
        run(workdir, folder, tmp_path / "out")
    os.rename(folder / "0b.png", folder / "0.png")
    (tmp_path / "out" / "features-00001-of-00003.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"features-00001-of-00003.parquet is damaged.*delete it"):
        run(workdir, folder, tmp_path / "out")


@pytest.mark.fast
def test_folders_that_cannot_be_used(workdir, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"gone' does not exist: give --input"):
        run(workdir, tmp_path / "gone", tmp_path / "out")
    with pytest.raises(UserError, match=r"holds no image.*--input"):
        run(workdir, tmp_path / "empty", tmp_path / "out")
    (tmp_path / "images").mkdir()
    Image.fromarray(image(0)).save(tmp_path / "images" / "0.png")
    with pytest.raises(UserError, match="nowhere does not exist"):
        run(tmp_path / "nowhere", tmp_path / "images", tmp_path / "out")
    with pytest.raises(UserError, match="holds something else"):
        run(workdir, tmp_path / "images", tmp_path / "images")
    with pytest.raises(UserError, match=r"0.png is a file"):
        run(workdir, tmp_path / "images", tmp_path / "images" / "0.png")
    with pytest.raises(UserError, match="--resize=31 is below"):
        run(workdir, tmp_path / "images", tmp_path / "out", resize=31)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    for text in ("{", "[]"):
        (tmp_path / "out" / "manifest.json").write_text(text)
        with pytest.raises(UserError, match="no manifest"):
            run(workdir, tmp_path / "images", tmp_path / "out")


@pytest.mark.fast
def test_features_that_are_not_finite_are_refused(tmp_path):
    schema = command.make_schema({"cls": [1, 2]}, "float16")
    rows = {"name": ["a.png"], "height": [9], "width": [9], "cls": np.array([[[1, np.inf]]], np.float16)}
    with pytest.raises(UserError, match=r"'cls'.*'a.png'.*--dtype=float32"):
        command.write_shard(tmp_path / "shard.parquet", schema, iter([rows]), [])
    assert not list(tmp_path.iterdir())


@pytest.mark.fast
def test_command_line_prints_one_sentence(tmp_path, monkeypatch, capsys):
    arguments = [f"--checkpoint={tmp_path}", f"--input={tmp_path}", f"--output={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["extract", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command_line(command.main)
    assert str(stopped.value).startswith("error: Folder") and "\n" not in str(stopped.value)
    for wrong, sentence in (("--outputs=cls,spare", "'spare' is unknown"), ("--batch=0", "'0' is no number")):
        monkeypatch.setattr(sys, "argv", ["extract", *arguments, wrong])
        with pytest.raises(SystemExit):
            command.main()
        assert sentence in capsys.readouterr().err


def start(workdir, folder, output, devices):
    command = [sys.executable, "-m", "sparse_vis.extract", "--shard-size=4", "--batch=4", "--threads=2"]
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(
        [*command, f"--checkpoint={workdir}", f"--input={folder}", f"--output={output}"],
        cwd=ROOT, env={**os.environ, **flags}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_killed_between_shards_it_continues_on_other_devices(workdir, tmp_path):
    folder, output = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    names = [f"{index:02d}.png" for index in range(18)]
    for index, name in enumerate(names):
        Image.fromarray(image(index)).save(folder / name)
    # A pipe that nobody writes to stops the process at image 9, in the third shard.
    (folder / names[9]).unlink()
    os.mkfifo(folder / names[9])
    process = start(workdir, folder, output, devices=1)
    deadline = time.monotonic() + 120
    while not (output / "features-00001-of-00005.parquet").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (folder / names[9]).unlink()
    Image.fromarray(image(9)).save(folder / names[9])
    kept = {path: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert len(kept) == 2
    process = start(workdir, folder, output, devices=3)  # 4 images fill up to 6
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert len(list(output.glob("*.parquet"))) == 5 and not list(output.glob("*.partial"))
    rows, _ = read(output)
    assert list(rows) == names
    features = expect(workdir, folder, names)
    for name in ("cls", "sparse", "spatial"):
        found = np.array([row[name] for row in rows.values()]).reshape(getattr(features, name).shape)
        np.testing.assert_allclose(found, getattr(features, name), rtol=1e-5, atol=1e-5)
