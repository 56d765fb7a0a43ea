"""Whether images are those of an earlier call: checksums of files' names and sizes, without reading them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from sparse_vis.data.sources import FolderSource, Source


def files_sha256(folder: str | Path, names: Iterable[str], *, times: bool) -> str:
    """SHA-256, hexadecimal, of the names and sizes of files; a missing one counts as such.

    Args:
        folder: with the files. names: below it.
        times: whether the times of their last change count too. They tell files of equal size apart, as
            uncompressed images and label maps often are, but a copy of a folder has new ones.
    """
    found = hashlib.sha256()
    for name in names:
        try:
            stat = os.stat(os.path.join(folder, name))
            about = f"{stat.st_size} {stat.st_mtime_ns if times else ''}"
        except OSError:
            about = "missing"
        found.update(f"{name}\0{about}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


def images_sha256(source: Source, indices: Iterable[int], *, times: bool) -> str | None:
    """What tells some images of a source from others, in their order; None if only its `repr` does.

    Args:
        source: random-access records. indices: which of them. times: as in `files_sha256`.
    """
    if isinstance(source, FolderSource):
        return files_sha256(source.path, [source.names[int(i)] for i in indices], times=times)
    return getattr(source, "images_sha256", None)


def stamp(source: Source, indices: Iterable[int]) -> dict[str, str]:
    """What a shard remembers of the images it was made of: `images`, names and sizes, and `times` too.

    Args:
        source, indices: of `images_sha256`; "" where that is None.
    """
    rows = list(indices)
    return {
        "images": images_sha256(source, rows, times=False) or "",
        "times": images_sha256(source, rows, times=True) or "",
    }


def note_times(names: list[str]) -> None:
    """Say that images of some shards may have been replaced by others of the same size.

    Args:
        names: of shards whose images have other times than when they were made.
    """
    if names:
        print(
            f"note: images of {len(names)} finished shards ({names[0]} …) have other times than when these "
            "were written, but the same names and sizes: if they were replaced, delete those shards.",
            flush=True,
        )
