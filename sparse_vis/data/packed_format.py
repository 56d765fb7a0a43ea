"""What the packed.json and the records of a packed folder must be (docs/imagenet.md)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import CHECKSUM, read_json, write_json

METADATA, VERSION = "packed.json", 2
WITHOUT_CHECKSUMS = 1  # the version before, which is still read
NAME_ERRORS = "surrogateescape"  # a file's name need not be UTF-8
COMMAND = "python -m sparse_vis pack"

Test = tuple[str, Callable[[Any], bool]]  # what a value must be, and whether it is


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
    "images": SHA256,  # of its images' names and sizes, skipped ones too; `times` of their times as well
    "times": SHA256,
}
SINCE_CHECKSUMS = ("sha256", "images", "times")  # fields that the version before lacks


def _check_fields(found: Any, fields: dict[str, Test], where: str) -> None:
    """Raise ValueError unless a map has exactly these fields, and each is what it must be."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} is no map")
    if odd := sorted(found.keys() ^ fields.keys()):
        raise ValueError(f"{where} {'lacks' if odd[0] in fields else 'has an unknown'} {odd[0]!r}")
    for name, (what, test) in fields.items():
        if not test(found[name]):
            raise ValueError(f"{name!r} of {where} is not {what}")


def _check(metadata: dict[str, Any]) -> None:
    """Raise ValueError, with what is wrong, unless the content of packed.json makes sense."""
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
    """How many shards all images fill."""
    return -(-metadata["images"] // metadata["shard_size"])


def shard_name(number: int, shards: int) -> str:
    """Name of a shard's file."""
    return f"images-{number:05d}-of-{shards:05d}.array_record"


def images_of(metadata: dict[str, Any], number: int) -> range:
    """Numbers of the images of a shard, skipped ones too."""
    start = number * metadata["shard_size"]
    return range(start, min(start + metadata["shard_size"], metadata["images"]))


def read_metadata(folder: Path) -> dict[str, Any]:
    """The content of a packed folder's packed.json, all of it checked; `shards` in order.

    Raises:
        UserError: it is damaged, cannot be read, or is of another version.
        FileNotFoundError, NotADirectoryError: there is none.
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
    """What tells sets of images apart, hexadecimal; it knows names, not contents."""
    return hashlib.sha256("\n".join(names).encode(errors=NAME_ERRORS)).hexdigest()


def describe(names: list[str], classes: tuple[str, ...], shard_size: int) -> dict[str, Any]:
    """The metadata of a packed folder without shards.

    Args:
        names, classes: of the folder's images. shard_size: images per shard.
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


def write_metadata(output: Path, metadata: dict[str, Any]) -> None:
    """Replace packed.json, so that it is there whole or not at all."""
    write_json(output / METADATA, metadata)


def unpack(data: bytes, classes: int) -> dict[str, Any]:
    """A record as it was packed.

    Args:
        data: msgpack. classes: number of them; 0: there are no labels.

    Raises:
        ValueError: it is no record, with the reason.
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
    except ValueError as error:  # some have no text
        raise ValueError(f"no msgpack: {error or type(error).__name__}") from None
    _check_fields(record, fields, "a record")
    return record
