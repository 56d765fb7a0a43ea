"""Format of packed.json and of the records of a packed folder (docs/imagenet.md)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import CHECKSUM, read_json

METADATA, VERSION = "packed.json", 2
WITHOUT_CHECKSUMS = 1  # the previous version, still readable
NAME_ERRORS = "surrogateescape"  # file names need not be UTF-8
COMMAND = "python -m sparse_vis pack"

Test = tuple[str, Callable[[Any], bool]]  # description of valid values, and the test for them


def _whole(lowest: int) -> Test:
    return f"a whole number of at least {lowest}", lambda x: type(x) is int and lowest <= x < 2**63


SHA256: Test = (
    "64 hexadecimal digits",
    lambda x: isinstance(x, str) and re.fullmatch("[0-9a-f]{64}", x) is not None,
)
FIELDS: dict[str, Test] = {
    "version": _whole(1),
    "images": _whole(1),
    "images_sha256": SHA256,
    "classes": (
        "a list of different names",
        lambda x: isinstance(x, list) and all(isinstance(c, str) for c in x) and len(set(x)) == len(x),
    ),
    "shard_size": _whole(1),
    "records": _whole(0),
    "shards": ("a map", lambda x: isinstance(x, dict)),
}
SHARD_FIELDS: dict[str, Test] = {
    "records": _whole(0),
    "bytes": _whole(0),
    "skipped": (
        "a list of pairs of name and reason",
        lambda x: (
            isinstance(x, list)
            and all(isinstance(p, list) and len(p) == 2 and all(isinstance(y, str) for y in p) for p in x)
        ),
    ),
    "sha256": SHA256,
    "images": SHA256,  # of names and sizes of its images, including skipped ones
    "times": SHA256,  # the same, with modification times
}
SINCE_CHECKSUMS = ("sha256", "images", "times")  # fields that the previous version lacks


def _check_fields(found: Any, fields: dict[str, Test], where: str) -> None:
    """Raise ValueError unless `found` is a dict with exactly these fields, all valid."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} is no map")
    if odd := sorted(found.keys() ^ fields.keys()):
        raise ValueError(f"{where} {'lacks' if odd[0] in fields else 'has an unknown'} {odd[0]!r}")
    for name, (what, test) in fields.items():
        if not test(found[name]):
            raise ValueError(f"{name!r} of {where} is not {what}")


def _check(metadata: dict[str, Any]) -> None:
    """Raise ValueError, saying what is wrong, unless the content of packed.json is valid."""
    old = metadata["version"] == WITHOUT_CHECKSUMS
    _check_fields(metadata, FIELDS if old else FIELDS | {CHECKSUM: SHA256}, "it")
    planned = number_of_shards(metadata)
    for name, shard in metadata["shards"].items():
        where = f"shard {name!r}"
        lacking = SINCE_CHECKSUMS if old else ()
        _check_fields(shard, {k: test for k, test in SHARD_FIELDS.items() if k not in lacking}, where)
        match = re.fullmatch(r"images-(\d+)-of-\d+\.array_record", name)
        number = int(match[1]) if match else planned
        if number >= planned or name != shard_name(number, planned):
            raise ValueError(f"{where} is none of its {planned}")
        if shard["records"] + len(shard["skipped"]) != len(images_of(metadata, number)):
            raise ValueError(f"the records of {where} are not as many as its images")
    if metadata["records"] != sum(shard["records"] for shard in metadata["shards"].values()):
        raise ValueError("'records' is not the sum of its shards'")


def number_of_shards(metadata: dict[str, Any]) -> int:
    """Number of shards that all images fill."""
    return -(-metadata["images"] // metadata["shard_size"])


def shard_name(number: int, shards: int) -> str:
    """Name of a shard's file."""
    return f"images-{number:05d}-of-{shards:05d}.array_record"


def images_of(metadata: dict[str, Any], number: int) -> range:
    """Indices of the images of a shard, including skipped ones."""
    start = number * metadata["shard_size"]
    return range(start, min(start + metadata["shard_size"], metadata["images"]))


def read_metadata(folder: Path) -> dict[str, Any]:
    """The checked content of a folder's packed.json, with `shards` in order.

    Raises:
        UserError: the file is damaged, cannot be read, or is of a later version.
        FileNotFoundError, NotADirectoryError: there is no such file.
    """
    path = folder / METADATA
    try:
        metadata = read_json(path)
        _check_fields({"version": metadata.get("version")}, {"version": FIELDS["version"]}, "it")
        if metadata["version"] in (WITHOUT_CHECKSUMS, VERSION):
            _check(metadata)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); restore it or its permissions.") from None
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); copy it again, or delete its folder and repeat `{COMMAND}`."
        ) from None
    if metadata["version"] > VERSION:
        raise UserError(
            f"{path} is of version {metadata['version']}, this program reads {VERSION}; "
            f"pack the images again with `{COMMAND}`."
        )
    return metadata | {"shards": dict(sorted(metadata["shards"].items(), key=_number))}


def _number(item: tuple[str, Any]) -> int:
    return int(item[0].split("-")[1])


def sha256_of(names: list[str]) -> str:
    """SHA-256 of image names, hexadecimal, as identity of a set of images; contents do not enter."""
    return hashlib.sha256("\n".join(names).encode(errors=NAME_ERRORS)).hexdigest()


def describe(names: list[str], classes: tuple[str, ...], shard_size: int) -> dict[str, Any]:
    """The metadata of a packed folder without shards.

    Args:
        names, classes: of the images. shard_size: images per shard.
    """
    return {
        "version": VERSION,
        "images": len(names),
        "images_sha256": sha256_of(names),
        "classes": list(classes),
        "shard_size": shard_size,
        "records": 0,
        "shards": {},
    }


def unpack(data: bytes, classes: int) -> dict[str, Any]:
    """Unpack and check a record.

    Args:
        data: msgpack. classes: number of classes; 0 if there are no labels.

    Raises:
        ValueError: says why it is no record.
    """
    fields: dict[str, Test] = {
        "image": ("bytes", lambda x: isinstance(x, bytes)),
        "name": ("a string", lambda x: isinstance(x, str)),
    }
    if classes:
        fields["label"] = (
            f"a whole number from -1 to {classes - 1}",
            lambda x: type(x) is int and -1 <= x < classes,
        )
    try:
        record = msgpack.unpackb(data, unicode_errors=NAME_ERRORS)
    except ValueError as error:  # some have no message
        raise ValueError(f"no msgpack: {error or type(error).__name__}") from None
    _check_fields(record, fields, "a record")
    return record
