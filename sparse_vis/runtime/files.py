"""Atomic writing of files, also in buckets, and checksums that detect later damage."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_vis.runtime.errors import reworded
from sparse_vis.runtime.paths import AnyPath, in_bucket

PARTIAL = ".partial"
CHECKSUM = "checksum"


@contextmanager
def whole(path: AnyPath) -> Iterator[Path]:
    """Context that yields a temporary path to write to; at its end, the file is synced and renamed to `path`.

    If `path` is in a bucket, the temporary file is on this machine's disk, and is uploaded at the end. After
    an error, an existing file is unchanged and the temporary file is removed.
    """
    if in_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder, path.name)
            yield partial
            path.upload(partial)
        return
    if path.exists() and not (path.is_symlink() or path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a device or pipe", str(path))  # root would replace /dev/null
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def on_disk(path: AnyPath) -> Iterator[Path]:
    """Context that yields a file on this machine's disk, for libraries that read no others: the path itself,
    or a copy if it is in a bucket. UserErrors raised inside name the object in the bucket.
    """
    if not in_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        with reworded(lambda sentence: sentence.replace(str(copy), str(path))):
            path.download(copy)
            yield copy


def write_whole(path: AnyPath, content: str | bytes) -> None:
    """Write a file as `whole` does. Text is written as UTF-8, with parts that are not UTF-8 escaped."""
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    if in_bucket(path):
        return path.write_bytes(data)
    with whole(path) as partial:
        partial.write_bytes(data)


def holds_files(folder: AnyPath, but: Container[str] = ()) -> bool:
    """Whether a folder holds files, other than hidden ones, temporary ones of a killed process, and `but`."""
    return folder.is_dir() and any(
        not path.name.startswith(".") and path.suffix != PARTIAL and path.name not in but
        for path in folder.iterdir()
    )


def file_sha256(path: AnyPath) -> str:
    """SHA-256 of a file, hexadecimal, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(content: dict[str, Any]) -> str:
    """SHA-256, hexadecimal, of a JSON object without its field `checksum`, in whatever order its keys are."""
    rest = {key: value for key, value in content.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_json(path: AnyPath, content: dict[str, Any]) -> None:
    """Write a JSON object atomically, with the checksum of its other fields as `checksum`.

    That line comes first, so that it is easy to delete when the file is changed by hand.
    """
    content = {CHECKSUM: None} | content | {CHECKSUM: checksum(content)}
    write_whole(path, json.dumps(content, indent=1) + "\n")


def read_json(path: AnyPath) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError if the file has none, or has a `checksum` that does not match."""
    try:
        content = json.loads(path.read_bytes().decode())
        if not isinstance(content, dict):
            raise ValueError
        same = CHECKSUM not in content or content[CHECKSUM] == checksum(content)
    except (ValueError, RecursionError):
        raise ValueError("it is not a JSON object") from None
    if not same:
        raise ValueError("its checksum is not that of its content")
    return content
