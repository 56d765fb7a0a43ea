"""Files that are there whole or not at all, and checksums that tell whether they still are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
CHECKSUM = "checksum"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name to write a file under; at the end it is made sure to be on disk and renamed.

    Args:
        path: of the file; whatever was there is replaced.

    Raises:
        OSError: it cannot be written; what was there is untouched and the temporary file is gone.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, make sure it is on disk, then rename it.

    Args:
        path: of the file; whatever was there is replaced. content: text is written as UTF-8, surrogates
            (of paths that are not) escaped with a backslash.

    Raises:
        OSError: it cannot be written; what was there is untouched and the temporary file is gone.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with whole(path) as partial:
        partial.write_bytes(data)


def holds_files(folder: Path, but: Container[str] = ()) -> bool:
    """Whether a folder holds anything but hidden files, leftovers of a killed process, and `but`."""
    return folder.is_dir() and any(
        not path.name.startswith(".") and path.suffix != PARTIAL and path.name not in but
        for path in folder.iterdir()
    )


def file_sha256(path: Path) -> str:
    """Checksum of a file's bytes, hexadecimal, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(content: dict[str, Any]) -> str:
    """Of the other fields of a JSON object, hexadecimal; docs/extraction.md shows how it is computed."""
    rest = {key: value for key, value in content.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all, with the checksum of its other fields as `checksum`.

    That line comes first, so that whoever changes the file by hand can just delete it.
    """
    content = {CHECKSUM: None} | content | {CHECKSUM: checksum(content)}
    write_whole(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object with its `checksum`, which is compared; files of earlier versions have none.

    Raises:
        ValueError: says in a few words what is damaged.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    try:
        content = json.loads(data.decode())
        if not isinstance(content, dict):
            raise ValueError
        same = CHECKSUM not in content or content[CHECKSUM] == checksum(content)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON object") from None
    if not same:
        raise ValueError("its checksum is not that of its content")
    return content
