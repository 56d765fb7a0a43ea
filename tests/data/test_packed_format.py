"""packed.json and records that are not what the packing wrote: one sentence each, and never a wrong image."""

import copy
import hashlib
import json
import random

import msgpack
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from sparse_vis.data.packed import PackedSource
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast

SHARDS = [f"images-0000{k}-of-00003.array_record" for k in range(3)]
REST = {"skipped": [], "images": "1" * 64, "times": "1" * 64}
RECORDS = [{"image": bytes([k]) * 50, "name": f"{'ab'[k % 2]}/{k}.png", "label": k % 2} for k in range(7)]
DELETE = object()


def seal(metadata):
    """docs/imagenet.md's checksum, computed here."""
    rest = {key: value for key, value in metadata.items() if key != "checksum"}
    return rest | {"checksum": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def write_shard(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    data = path.read_bytes()
    return {"records": len(records), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write_folder(folder, records=RECORDS, version=2):
    """A packed folder of three images a shard, made without the code that is tested."""
    folder.mkdir(exist_ok=True)
    packed = [r if isinstance(r, bytes) else msgpack.packb(r) for r in records]
    metadata = {
        "version": 2, "images": 7, "images_sha256": "0" * 64, "classes": ["a", "b"], "shard_size": 3,
        "records": 7,
        "shards": {
            name: write_shard(folder / name, packed[3 * k : 3 * k + 3]) | REST
            for k, name in enumerate(SHARDS)
        },
    }  # fmt: skip
    if version == 1:
        metadata["version"] = 1
        for shard in metadata["shards"].values():
            del shard["sha256"], shard["images"], shard["times"]
    metadata = seal(metadata) if version == 2 else metadata
    (folder / "packed.json").write_text(json.dumps(metadata, indent=1))
    return metadata


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed")
    write_folder(path)
    return path


def refusal(folder):
    """The one sentence that opening, or reading all records, ends with; None if all is as it was packed."""
    try:
        found = PackedSource(str(folder))
        assert list(found) == [r | {"max_pixels": 2**27} for r in RECORDS] and found.classes == ("a", "b")
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


WRONG = (
    (("version",), DELETE), (("version",), "2"), (("version",), 0), (("version",), None), (("version",), [2]),
    (("images",), DELETE), (("images",), "7"), (("images",), 7.0), (("images",), 0), (("images",), -7),
    (("images",), 8), (("images",), 10**30), (("images",), 10**18), (("images",), True),
    (("images_sha256",), 5), (("images_sha256",), "0"), (("images_sha256",), None),
    (("classes",), "ab"), (("classes",), {"a": 0}), (("classes",), [1, 2]), (("classes",), None),
    (("classes",), ["a", "a"]), (("classes",), [["a"], "b"]), (("classes",), DELETE),
    (("shard_size",), 0), (("shard_size",), -3), (("shard_size",), "3"), (("shard_size",), 2),
    (("shard_size",), float("nan")), (("shard_size",), 1e400), (("shard_size",), DELETE),
    (("records",), 6), (("records",), -1), (("records",), "7"), (("records",), None), (("records",), [7]),
    (("shards",), []), (("shards",), None), (("shards",), "x"), (("shards",), 3), (("shards",), DELETE),
    (("shards", SHARDS[1]), DELETE), (("shards", SHARDS[1]), []), (("shards", SHARDS[1]), None),
    (("shards", "../../etc/passwd"), {"records": 0, "bytes": 0, "skipped": [], "sha256": "0" * 64}),
    (("shards", SHARDS[1], "records"), 2), (("shards", SHARDS[1], "records"), "3"),
    (("shards", SHARDS[1], "records"), -3), (("shards", SHARDS[1], "records"), None),
    (("shards", SHARDS[1], "bytes"), "x"), (("shards", SHARDS[1], "bytes"), 5),
    (("shards", SHARDS[1], "bytes"), -1), (("shards", SHARDS[1], "bytes"), DELETE),
    (("shards", SHARDS[1], "sha256"), 3), (("shards", SHARDS[1], "sha256"), DELETE),
    (("shards", SHARDS[1], "skipped"), 3), (("shards", SHARDS[1], "skipped"), ["x"]),
    (("shards", SHARDS[1], "skipped"), [["a", 1]]), (("shards", SHARDS[1], "skipped"), "ab"),
    (("shards", SHARDS[1], "skipped"), [["a", "b", "c"]]), (("shards", SHARDS[1], "more"), 1), (("more",), 1),
)  # fmt: skip


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_metadata_of_wrong_types_or_values_is_refused(folder, place, value):
    """Though the checksum is right about it."""
    path = folder / "packed.json"
    before = path.read_text()
    metadata = copy.deepcopy(json.loads(before))
    at = metadata
    for key in place[:-1]:
        at = at[key]
    if value is DELETE:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    path.write_text(json.dumps(seal(metadata)))
    try:
        assert (said := refusal(folder)) is not None
        assert str(path) in said or place[-1] in said or "shard" in said
    finally:
        path.write_text(before)


@pytest.mark.parametrize("text", ("", "[]", "7", "null", "{", "NaN", "[" * 100000, '"x"', "{}", "\x00"))
def test_a_packed_json_that_is_no_map_is_refused(folder, text):
    path = folder / "packed.json"
    before = path.read_text()
    path.write_text(text)
    try:
        assert "packed.json is damaged" in refusal(folder)
    finally:
        path.write_text(before)


def test_a_packed_json_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "packed.json").mkdir()
    assert "packed.json cannot be read (Is a directory)" in refusal(tmp_path)


def test_flipped_bits_of_any_file_are_refused_or_harmless(folder):
    harmless, rng = 0, random.Random(0)
    for path in (*(folder / name for name in SHARDS), folder / "packed.json"):
        whole = path.read_bytes()
        used = [place for place, byte in enumerate(whole) if byte]  # not the padding of ArrayRecord
        for _ in range(60):
            data, bit = bytearray(whole), rng.randrange(8)
            data[rng.choice(used)] ^= 1 << bit
            path.write_bytes(data)
            said = refusal(folder)
            harmless += said is None
            assert said is None or path.name in said
        path.write_bytes(whole)
    assert harmless < 120 and refusal(folder) is None


@pytest.mark.parametrize(
    ("record", "what"),
    (
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (msgpack.packb(RECORDS[4])[:20], "not msgpack"),
        (msgpack.packb(RECORDS[4]) + b"x", "not msgpack"),
        (msgpack.packb({1: 2}), "not msgpack"),
        (b"\x91" * 5000, "not msgpack"),
        (7, "a record is not an object"),
        (None, "a record is not an object"),
        ([b"x", "a/4.png", 0], "a record is not an object"),
        ({"name": "a/4.png", "label": 0}, "a record lacks 'image'"),
        ({"image": b"x", "label": 0}, "a record lacks 'name'"),
        ({"image": b"x", "name": "a/4.png"}, "a record lacks 'label'"),
        (RECORDS[4] | {"labels": [0]}, "a record has an unknown 'labels'"),
        (RECORDS[4] | {"image": "x"}, "'image' of a record is not bytes"),
        (RECORDS[4] | {"image": None}, "'image' of a record is not bytes"),
        (RECORDS[4] | {"name": 3}, "'name' of a record is not a string"),
        (RECORDS[4] | {"name": b"a"}, "'name' of a record is not a string"),
        (RECORDS[4] | {"label": "0"}, "'label' of a record is not a whole number from -1 to 1"),
        (RECORDS[4] | {"label": 2}, "'label' of a record is not a whole number from -1 to 1"),
        (RECORDS[4] | {"label": -2}, "'label' of a record is not a whole number from -1 to 1"),
        (RECORDS[4] | {"label": 0.0}, "'label' of a record is not a whole number from -1 to 1"),
        (RECORDS[4] | {"label": True}, "'label' of a record is not a whole number from -1 to 1"),
        (RECORDS[4] | {"label": [0]}, "'label' of a record is not a whole number from -1 to 1"),
    ),
)
def test_malformed_records_are_named_by_shard_and_number(tmp_path, record, what):
    record = record if isinstance(record, bytes) else msgpack.packb(record)
    write_folder(tmp_path, [*RECORDS[:4], record, *RECORDS[5:]])
    found = PackedSource(str(tmp_path))
    intact = (0, 3, 5, 6)
    assert [found[k] for k in intact] == [RECORDS[k] | {"max_pixels": 2**27} for k in intact]
    with pytest.raises(UserError) as error:
        found[4]
    said = str(error.value)
    assert said.startswith(f"record 1 of shard {SHARDS[1]!r}") and what in said and "\n" not in said


def test_folders_of_the_version_before_are_read_with_a_note(tmp_path, capsys):
    metadata = write_folder(tmp_path, version=1)
    assert refusal(tmp_path) is None
    assert "note: " in (said := capsys.readouterr().out) and "earlier version" in said
    # What gave 44 of 54 wrong records: fewer of them said of a shard, and more of the next.
    metadata["shards"][SHARDS[0]].update(records=2, skipped=[["x", "y"]])
    metadata["records"] = 6
    (tmp_path / "packed.json").write_text(json.dumps(metadata))
    assert f"shard {SHARDS[0]!r}" in (said := refusal(tmp_path)) and "3 records, 2 expected" in said


def test_a_folder_of_which_all_was_skipped_is_refused(tmp_path):
    metadata = write_folder(tmp_path)
    for name, shard in metadata["shards"].items():
        skipped = [["a", "b"]] * shard["records"]
        shard.update(write_shard(tmp_path / name, []) | {"skipped": skipped})
    (tmp_path / "packed.json").write_text(json.dumps(seal(metadata | {"records": 0})))
    assert "contains no images" in refusal(tmp_path)
