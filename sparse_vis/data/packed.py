"""Packed images: the files of a folder in a few large shards, written by `python -m sparse_vis pack`.

Shards are ArrayRecord files. A record is a msgpack map of `image` (the bytes of the file), `name` and, if the
folder has classes, `label`. packed.json beside them describes the shards (docs/imagenet.md).
"""

import bisect
import itertools
import re
from pathlib import Path
from typing import Any

import msgpack
from array_record.python.array_record_module import ArrayRecordReader

from sparse_vis.config.ranges import TEXT, Form, Range, whole
from sparse_vis.data.bucket_records import UNREADABLE, BucketRecords
from sparse_vis.data.folder import NAME_ERRORS
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.files import CHECKSUM, read_json
from sparse_vis.runtime.paths import AnyPath, as_path, in_bucket, is_utf8
from sparse_vis.runtime.progress import say_once
from sparse_vis.runtime.skipped import MAX_PIXELS

METADATA, VERSION = "packed.json", 2
WITHOUT_CHECKSUMS = 1  # the previous version, still readable
COMMAND = "python -m sparse_vis pack"
MOST = 2**63 - 1  # of any number in packed.json


class PackedSource:
    """Records of a packed folder, the same as FolderSource gives for the original one.

    Raises UserError if the folder is missing, unfinished or damaged; the records themselves are checked when
    they are read.
    """

    def __init__(self, path: str, max_pixels: int = MAX_PIXELS):
        import grain

        folder, self.path, self.max_pixels = as_path(path), path, max_pixels
        self.about = f"in {path}"
        if not is_utf8(folder):
            raise UserError(
                f"{path!r} has a name that is not UTF-8, below which ArrayRecord cannot read; rename it."
            )
        metadata = read_metadata(folder)
        shards = metadata["shards"]
        done = sum(shard["records"] + len(shard["skipped"]) for shard in shards.values())
        if done != metadata["images"]:
            raise UserError(
                f"packed folder {path!r} is unfinished ({done} of {metadata['images']} images); repeat the "
                f"`{COMMAND}` command that started it."
            )
        if not metadata["records"]:
            raise UserError(f"packed folder {path!r} contains no images, as all were skipped; pack others.")
        self._check_shards(folder, shards)
        if metadata["version"] == WITHOUT_CHECKSUMS:
            say_once(
                f"note: {path} was packed by an earlier version, without a checksum: damage to its images is "
                f"noticed, but not all damage to {METADATA}."
            )
        self.classes, self.images_sha256 = tuple(metadata["classes"]), metadata["images_sha256"]
        self._shards = list(shards)
        self._ends = list(itertools.accumulate(shard["records"] for shard in shards.values()))
        if in_bucket(path):
            about = ((f"{path}/{name}", shard["bytes"], shard["records"]) for name, shard in shards.items())
            self._records = BucketRecords(about)
            return
        # With the number of records in brackets, Grain does not open a shard until it is read.
        files = [f"{folder / name}[0:{shard['records']}]" for name, shard in shards.items()]
        self._records = grain.sources.ArrayRecordDataSource(files)

    def _check_shards(self, folder: AnyPath, shards: dict[str, Any]) -> None:
        """Raise UserError for a shard of another length, or (on a disk) number of records, than recorded."""
        there = folder.objects() if in_bucket(folder) else None
        for name, shard in shards.items():
            size = length(folder / name) if there is None else there.get(name, (None,))[0]
            if size != shard["bytes"]:
                problem = "missing" if size is None else f"of {size} bytes, not {shard['bytes']}"
            elif there is None and (found := count_records(folder / name)) != shard["records"]:
                problem = f"damaged ({found} records, {shard['records']} expected)"
            else:
                continue
            what = f"shard {name!r} of {self.path!r} is {problem}"
            raise UserError(f"{what}; copy it again, or repeat the `{COMMAND}` that wrote it.")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        record = index - (self._ends[number - 1] if number else 0)
        what = f"record {record} of shard {self._shards[number]!r} of {self.path!r} is damaged"
        with explained(UNREADABLE, what, f"copy the shard again, or repeat the `{COMMAND}` that wrote it."):
            return _unpack(self._records[index], len(self.classes)) | {"max_pixels": self.max_pixels}

    def __repr__(self) -> str:
        return f"PackedSource({self.path!r}, {len(self)} images)"


def length(path: AnyPath) -> int | None:
    """Bytes of a shard's file; None if it is missing."""
    return path.stat().st_size if path.is_file() else None


def count_records(path: Path) -> int:
    """Number of records in a shard's file; 0 if it cannot be read."""
    try:
        reader = ArrayRecordReader(str(path))
        found = reader.num_records()
        reader.close()
    except RuntimeError:  # the only type that ArrayRecord raises, sometimes only on reading
        return 0
    return found


def number_of_shards(metadata: dict[str, Any]) -> int:
    """Number of shards of the finished folder."""
    return -(-metadata["images"] // metadata["shard_size"])


def shard_name(number: int, shards: int) -> str:
    """Name of a shard's file."""
    return f"images-{number:05d}-of-{shards:05d}.array_record"


def images_of(metadata: dict[str, Any], number: int) -> range:
    """Indices of the images of a shard, including skipped ones."""
    start = number * metadata["shard_size"]
    return range(start, min(start + metadata["shard_size"], metadata["images"]))


def describe(images: int, images_sha256: str, classes: tuple[str, ...], shard_size: int) -> dict[str, Any]:
    """The metadata of a packed folder of these images, without shards yet."""
    return {
        "version": VERSION, "images": images, "images_sha256": images_sha256,
        "classes": list(classes), "shard_size": shard_size, "records": 0, "shards": {},
    }  # fmt: skip


def read_metadata(folder: AnyPath) -> dict[str, Any]:
    """The content of a folder's packed.json, with `shards` in order. Raises UserError if it is not valid."""
    path = folder / METADATA
    unread = explained(OSError, f"{path} cannot be read", "restore it or its permissions.")
    remedy = f"copy it again, or delete its folder and repeat `{COMMAND}`."
    with unread, explained(ValueError, f"{path} is damaged", remedy):
        if not path.exists():
            raise UserError(
                f"folder {str(folder)!r} holds no packed images ({METADATA}); write them with "
                f"`{COMMAND} --input=FOLDER --output=...`, or correct --config.data.path and "
                '--config.data.split (a subfolder, or "").'
            )
        metadata = read_json(path)
        _check_fields({"version": metadata.get("version")}, {"version": FIELDS["version"]}, "it")
        if metadata["version"] in (WITHOUT_CHECKSUMS, VERSION):
            _check(metadata)
    if metadata["version"] > VERSION:
        raise UserError(
            f"{path} is of version {metadata['version']}, but this program reads {VERSION}; "
            f"pack the images again with `{COMMAND}`."
        )
    in_order = sorted(metadata["shards"].items(), key=lambda item: int(item[0].split("-")[1]))
    return metadata | {"shards": dict(in_order)}


SHA256 = Form(lambda x: TEXT.right(x) and re.fullmatch("[0-9a-f]{64}", x), "is not 64 hexadecimal digits")
FIELDS = {
    "version": whole(1, MOST),
    "images": whole(1, MOST),
    "images_sha256": SHA256,
    "classes": Form(lambda x: _list(x, TEXT) and len(set(x)) == len(x), "is not a list of different names"),
    "shard_size": whole(1, MOST),
    "records": whole(0, MOST),
    "shards": Form(lambda x: isinstance(x, dict), "is not an object"),
}
PAIR = Form(lambda x: _list(x, TEXT) and len(x) == 2, "")
SHARD_FIELDS = {
    "records": whole(0, MOST),
    "bytes": whole(0, MOST),
    "skipped": Form(lambda x: _list(x, PAIR), "is not a list of pairs of name and reason"),
    "sha256": SHA256,
    "images": SHA256,  # of names and sizes of its images, including skipped ones
    "times": SHA256,  # the same, with modification times
}
SINCE_CHECKSUMS = ("sha256", "images", "times")  # fields that the previous version lacks


def _list(x: Any, form: Form) -> bool:
    return isinstance(x, list) and all(map(form.right, x))


def _check_fields(found: Any, fields: dict[str, Range | Form], where: str) -> None:
    """Raise ValueError unless `found` is a dict with exactly these fields, all valid."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} is not an object")
    if odd := sorted(found.keys() ^ fields.keys()):
        raise ValueError(f"{where} {'lacks' if odd[0] in fields else 'has an unknown'} {odd[0]!r}")
    for name, allowed in fields.items():
        if fault := allowed.fault(found[name]):
            raise ValueError(f"{name!r} of {where} {fault.partition(';')[0]}")


def _check(metadata: dict[str, Any]) -> None:
    """Raise ValueError unless the content of packed.json is valid."""
    old = metadata["version"] == WITHOUT_CHECKSUMS
    _check_fields(metadata, FIELDS if old else FIELDS | {CHECKSUM: SHA256}, "it")
    fields = {k: test for k, test in SHARD_FIELDS.items() if not (old and k in SINCE_CHECKSUMS)}
    planned = number_of_shards(metadata)
    for name, shard in metadata["shards"].items():
        where = f"shard {name!r}"
        _check_fields(shard, fields, where)
        match = re.fullmatch(r"images-(\d+)-of-\d+\.array_record", name)
        number = int(match[1]) if match else planned
        if number >= planned or name != shard_name(number, planned):
            raise ValueError(f"{where} is not one of its {planned}")
        if shard["records"] + len(shard["skipped"]) != len(images_of(metadata, number)):
            raise ValueError(f"{where} does not have as many records as images")
    if metadata["records"] != sum(shard["records"] for shard in metadata["shards"].values()):
        raise ValueError("'records' is not the sum over its shards")


def _unpack(data: bytes, classes: int) -> dict[str, Any]:
    """Unpack and check a record, which has a label if there are classes. Raises ValueError if it is wrong."""
    fields = {
        "image": Form(lambda x: isinstance(x, bytes), "is not bytes"),
        "name": Form(TEXT.right, "is not a string"),
    }
    if classes:
        last = classes - 1
        fields["label"] = Form(
            lambda x: type(x) is int and -1 <= x <= last, f"is not a whole number from -1 to {last}"
        )
    try:
        record = msgpack.unpackb(data, unicode_errors=NAME_ERRORS)
    except ValueError as error:  # some have no message
        raise ValueError(f"not msgpack: {error or type(error).__name__}") from None
    _check_fields(record, fields, "a record")
    return record
