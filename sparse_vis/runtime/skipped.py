"""skipped.txt, with one line for each image that a command could not use."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sparse_vis.runtime.names import escaped

FILE = "skipped.txt"
ON_ERROR = ("stop", "skip")  # what to do with an unusable image
Skips = list[tuple[str, str]]  # (name, reason) of images that could not be used


def lines(skips: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each image, without duplicates: escaped name, tab, reason."""
    return list(dict.fromkeys(f"{escaped(name)}\t{' '.join(reason.split())}\n" for name, reason in skips))


def append(folder: Path, new: Iterable[str]) -> None:
    """Append those lines to the folder's skipped.txt that it does not have yet.

    Args:
        folder: of the run. new: from `lines`.
    """
    path, new = folder / FILE, list(new)
    known = set(path.read_text().splitlines(keepends=True)) if new and path.exists() else set()
    if left := [line for line in new if line not in known]:
        with path.open("a") as file:
            file.writelines(left)
