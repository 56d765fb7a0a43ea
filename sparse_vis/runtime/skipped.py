"""skipped.txt, with one line for each image that a command could not use."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sparse_vis.runtime.files import write_whole
from sparse_vis.runtime.names import escaped

FILE = "skipped.txt"
Skips = list[tuple[str, str]]  # (name, reason) of images that could not be used


def lines(skips: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each image, without duplicates: escaped name, tab, reason."""
    return list(dict.fromkeys(f"{escaped(name)}\t{' '.join(reason.split())}\n" for name, reason in skips))


def append(folder: Path, new: Iterable[str]) -> None:
    """Append those lines to the folder's skipped.txt that it does not have yet.

    Args:
        folder: of the run. new: from `lines`.

    Raises:
        OSError: it cannot be written, and is as it was.
    """
    if not (new := [line.encode(errors="backslashreplace") for line in new]):
        return
    path = folder / FILE
    there = path.read_bytes() if path.exists() else b""
    known = set(there.splitlines(keepends=True))
    if left := [line for line in new if line not in known]:
        write_whole(path, there + b"".join(left))
