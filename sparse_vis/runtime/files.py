"""Atomic writing of files, and checksums that detect later damage."""

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
    """Context that yields a temporary path to write to; at its end, it is synced to disk and renamed.

    Raises:
        OSError: it cannot be written; an existing file is unchanged and the temporary file is removed.
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
    """Write a file as `whole` does; text as UTF-8, with surrogates (paths that are not UTF-8) escaped."""
    with whole(path) as partial:
        data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
        partial.write_bytes(data)


def holds_files(folder: Path, but: Container[str] = ()) -> bool:
    """Whether a folder holds anything but hidden files, temporary files of a killed process, and `but`."""
    return folder.is_dir() and any(
        not path.name.startswith(".") and path.suffix != PARTIAL and path.name not in but
        for path in folder.iterdir()
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(content: dict[str, Any]) -> str:
    """Checksum of a JSON object without its field `checksum`, hexadecimal (docs/extraction.md).

    It does not depend on formatting and the order of keys.
    """
    rest = {key: value for key, value in content.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object atomically, with the checksum of its other fields as `checksum`.

    That line comes first, so that it is easy to delete when the file is changed by hand.
    """
    content = {CHECKSUM: None} | content | {CHECKSUM: checksum(content)}
    write_whole(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object and compare its `checksum`; files of earlier versions have none.

    Raises:
        ValueError: says in a few words what is damaged.
        OSError: the file cannot be read.
    """
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
