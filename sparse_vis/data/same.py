"""Recognise the images of an earlier call, by checksums of files' names and sizes, without reading them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from sparse_vis.data.sources import FolderSource, Source


def files_sha256(folder: str | Path, names: Iterable[str], *, times: bool) -> str:
    """SHA-256, hexadecimal, of the names and sizes of files; a missing file enters as "missing".

    Args:
        folder: that holds the files. names: relative to it.
        times: whether modification times enter too. They distinguish files of equal size, as uncompressed
            images and label maps often are, but a copied folder may have new ones.
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
    """Checksum that identifies images of a source, in their order; None if the source has none (scenes).

    For sources other than folders it is that of all their images.

    Args:
        source: random-access records. indices: of the images. times: as in `files_sha256`.
    """
    if isinstance(source, FolderSource):
        return files_sha256(source.path, [source.names[int(i)] for i in indices], times=times)
    return getattr(source, "images_sha256", None)


def stamp(source: Source, indices: Iterable[int]) -> dict[str, str]:
    """Checksums that a shard stores of its images: `images` of names and sizes, `times` with times too.

    Args:
        source, indices: as in `images_sha256`, whose None becomes "".
    """
    rows = list(indices)
    return {
        "images": images_sha256(source, rows, times=False) or "",
        "times": images_sha256(source, rows, times=True) or "",
    }


def note_times(names: list[str]) -> None:
    """Print a note that images of some shards may have been replaced by others of the same size.

    Args:
        names: of shards whose images have other modification times than when the shard was written.
    """
    if names:
        print(
            f"note: images of {len(names)} finished shards ({names[0]} …) have other times than when these "
            "were written, but the same names and sizes: if they were replaced, delete those shards.",
            flush=True,
        )
