"""Shards of features as files: what is damaged, short or left over is refused, harmless or written again."""

import errno
import hashlib
import json
import os
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from sparse_vis.commands import shards
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast

SETTINGS = {"checkpoint": "runs/a", "step": 3, "images": 8, "outputs": {"cls": [1, 16]}, "shard_size": 3}
SCHEMA = shards.make_schema(SETTINGS["outputs"], "float32")
PRINT = shards.fingerprint(SETTINGS)
ABOUT = {"settings": PRINT, "images": "", "times": ""}
BAD = [("6.png", "cannot decode '6.png'")]


def batches(numbers):
    """Rows of one batch, each image's features made of its number."""
    values = [np.random.default_rng(n).normal(size=(1, 16)) for n in numbers]
    yield {
        "name": [f"{n}.png" for n in numbers],
        "height": [n + 1 for n in numbers],
        "width": [n + 2 for n in numbers],
        "cls": np.array(values, np.float32),
    }


@pytest.fixture
def finished(tmp_path):
    """Eight images in three shards, of which one is skipped: paths and numbers of images."""
    output = tmp_path / "features"
    shards.open_output(output, SETTINGS, first=True)
    planned = shards.plan(output, 8, 3)
    for path, numbers in planned.items():
        shards.write_shard(
            path, SCHEMA, batches([n for n in numbers if n != 6]), BAD if 6 in numbers else [], ABOUT
        )
    assert shards.finish(output, SETTINGS, planned) == (7, 1)
    return planned


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_a_finished_folder_says_what_it_holds_and_with_which_checksums(finished):
    output = next(iter(finished)).parent
    manifest = json.loads((output / "manifest.json").read_text())
    for path, images in finished.items():
        said, data = manifest["shards"][path.name], path.read_bytes()
        assert said["rows"] + said["skipped"] == len(images) and said["bytes"] == len(data)
        assert said["sha256"] == hashlib.sha256(data).hexdigest()
    checksum = manifest.pop("checksum")
    assert checksum == hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    assert (output / "skipped.txt").read_text() == "6.png\tcannot decode '6.png'\n"
    shards.open_output(output, SETTINGS | {"checkpoint": "moved"}, first=True)


def test_a_flipped_bit_of_a_shard_is_refused(finished):
    path, images = next(iter(finished.items()))
    whole, random_bits = path.read_bytes(), random.Random(0).sample(range(8 * path.stat().st_size), 100)
    for bit in random_bits:
        flip(path, bit)
        with pytest.raises(UserError, match=rf"{path.name} is damaged .*; delete it and repeat"):
            shards.read_shard(path, len(images), PRINT, content=True)
        path.write_bytes(whole)
    shards.read_shard(path, len(images), PRINT, content=True)


def test_a_flipped_bit_of_an_entry_or_manifest_is_refused_or_changes_nothing(finished):
    path, images = list(finished.items())[2]
    entry, manifest = path.with_suffix(".json"), path.parent / "manifest.json"
    expected = shards.read_shard(path, len(images), PRINT, content=False)
    harmless = []
    for file, read in (
        (entry, lambda: shards.read_shard(path, len(images), PRINT, content=False) == expected),
        (manifest, lambda: shards.open_output(path.parent, SETTINGS, first=True) is None),
    ):
        whole = file.read_bytes()
        for bit in range(0, 8 * len(whole), 53):  # every bit takes a minute, and was tried once
            flip(file, bit)
            try:
                assert read()
            except UserError as error:
                assert file.name in str(error) or "other images or settings" in str(error)
                assert "\n" not in str(error)
            else:
                harmless.append(chr(whole[bit // 8]))
            file.write_bytes(whole)
    assert set(harmless) <= set(" \n")


def test_short_shards_are_refused(finished):
    """A shard of fewer rows that is a whole Parquet file, and an entry that is right about it."""
    path, images = next(iter(finished.items()))
    pq.write_table(pq.read_table(path).slice(0, 1), path)
    for content in (True, False):
        with pytest.raises(UserError, match=rf"{path.name} is damaged \(\d+ bytes of \d+\); delete it"):
            shards.read_shard(path, len(images), PRINT, content=content)
    shards.write_shard(path, SCHEMA, batches([0]), [], ABOUT)
    with pytest.raises(UserError, match=r"damaged \(1 rows and 0 skipped images of 3\)"):
        shards.finish(path.parent, SETTINGS, finished)


def test_a_reader_of_parquet_alone_notices_a_flipped_value(finished):
    path = next(iter(finished))
    table = pq.read_table(path)
    value = table["cls"].combine_chunks().flatten().to_numpy()[5:6].tobytes()
    flip(path, 8 * path.read_bytes().index(value) + 3)
    assert not pq.read_table(path).equals(table)
    with pytest.raises(OSError, match="could not verify page integrity"):
        pq.read_table(path, page_checksum_verification=True)


def test_lost_and_older_files_are_refused_with_the_remedy(finished):
    path, images = next(iter(finished.items()))
    entry, manifest = path.with_suffix(".json"), path.parent / "manifest.json"
    without = {key: value for key, value in json.loads(entry.read_text()).items() if key != "checksum"}
    for text in ("[]", "{", json.dumps(without), "[" * 100000):
        entry.write_text(text)
        with pytest.raises(UserError, match=rf"{entry.name} cannot be used .*delete {path.name} and repeat"):
            shards.read_shard(path, len(images), PRINT, content=True)
    entry.unlink()
    with pytest.raises(UserError, match=rf"{entry.name} is missing; delete {path.name} and repeat"):
        shards.read_shard(path, len(images), PRINT, content=True)
    for text in ("[]", "{", "", "\udcff"):
        manifest.write_bytes(os.fsencode(text))
        with pytest.raises(
            UserError, match=r"manifest.json is damaged or .*; delete it and repeat the command, or give"
        ):
            shards.open_output(path.parent, SETTINGS, first=True)
    manifest.write_text(json.dumps(SETTINGS))
    with pytest.raises(UserError, match="by an earlier version, without checksums"):
        shards.open_output(path.parent, SETTINGS, first=True)


def test_a_lost_manifest_is_written_again_and_shards_of_other_settings_are_refused(finished):
    path, images = next(iter(finished.items()))
    manifest = path.parent / "manifest.json"
    before = manifest.read_text()
    manifest.unlink()
    shards.open_output(path.parent, SETTINGS, first=True)
    assert shards.finish(path.parent, SETTINGS, finished) == (7, 1) and manifest.read_text() == before
    manifest.unlink()
    with pytest.raises(UserError, match="contains other files"):  # shards of another size would stay beside
        shards.open_output(path.parent, SETTINGS | {"shard_size": 4}, first=True)
    other = shards.fingerprint(SETTINGS | {"step": 4})
    with pytest.raises(UserError, match=rf"{path.name} was written with other settings; give"):
        shards.read_shard(path, len(images), other, content=True)


def test_what_a_killed_process_leaves_is_not_something_else(tmp_path):
    output = tmp_path / "features"
    output.mkdir()
    (output / "manifest.json.partial").write_text('{"checkp')
    (output / "features-00000-of-00001.parquet.partial").write_text("PAR1")
    shards.open_output(output, SETTINGS, first=True)
    planned = shards.plan(output, 3, 3)
    shards.write_shard(*planned, SCHEMA, batches(range(3)), [], ABOUT)
    assert shards.finish(output, SETTINGS, planned) == (3, 0) and not list(output.glob("*.partial"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="other contains other files"):
        shards.open_output(tmp_path / "other", SETTINGS, first=True)


def test_a_full_disk_leaves_no_part_of_a_shard(tmp_path, monkeypatch):
    """The disk is full when the kernel is told to write what it holds back."""
    planned = shards.plan(tmp_path, 3, 3)
    (path,) = planned

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            shards.write_shard(path, SCHEMA, batches(range(3)), [], ABOUT)
    assert not list(tmp_path.iterdir())
    shards.write_shard(path, SCHEMA, batches(range(3)), [], ABOUT)
    assert shards.read_shard(path, 3, PRINT, content=True).rows == 3


def test_a_folder_whose_name_has_a_colon(tmp_path):
    """Which pyarrow takes for an address when it is given the path."""
    (tmp_path / "feat:v2").mkdir()
    path = tmp_path / "feat:v2" / "features-00000-of-00001.parquet"
    shards.write_shard(path, SCHEMA, batches(range(3)), [], ABOUT)
    assert shards.read_shard(path, 3, PRINT, content=True).rows == 3
