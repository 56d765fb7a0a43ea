"""Packed images: the files of a folder in a few large shards, written by `python -m sparse_vis pack`.

Shards are ArrayRecord files. A record is a msgpack map of `image` (the bytes of the file), `name` and, if the
folder has classes, `label`. packed.json beside them describes the shards (docs/imagenet.md).
"""

from __future__ import annotations

import bisect
import itertools
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

from sparse_vis.data.image_file import MAX_PIXELS
from sparse_vis.data.packed_format import (
    COMMAND,
    METADATA,
    VERSION,
    WITHOUT_CHECKSUMS,
    read_metadata,
    unpack,
    write_metadata,
)
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import holds_files
from sparse_vis.runtime.notes import say_once
from sparse_vis.runtime.paths import is_utf8


def has_shard(folder: Path, name: str, shard: dict[str, Any]) -> bool:
    """Whether the folder has the shard's file, at its full length."""
    path = folder / name
    return path.is_file() and path.stat().st_size == shard["bytes"]


def count_records(path: Path) -> int:
    """Number of records in a shard's file; 0 if it cannot be read."""
    try:
        reader = ArrayRecordReader(str(path))
        found = reader.num_records()
        reader.close()
    except RuntimeError:  # the only type that ArrayRecord raises, sometimes only on reading
        return 0
    return found


def open_output(output: Path, new: dict[str, Any]) -> dict[str, Any]:
    """The metadata from which to continue: an earlier call's for the same images, or `new`.

    Args:
        output: folder, created if needed. new: from `describe`.

    Raises:
        UserError: the folder holds something else.
    """
    output.mkdir(parents=True, exist_ok=True)
    try:
        found = read_metadata(output)
    except FileNotFoundError:
        if holds_files(output):
            raise UserError(
                f"folder {str(output)!r} holds something else; give --output a new or empty folder."
            ) from None
        write_metadata(output, new)
        return new
    if found["version"] != VERSION:
        raise UserError(
            f"folder {str(output)!r} was packed by an earlier version, which kept no checksums: it can be "
            "read, but not continued; give --output another folder."
        )
    changed = [name for name in new if name not in ("records", "shards") and found[name] != new[name]]
    if changed:
        raise UserError(
            f"folder {str(output)!r} was packed from other images or with another --shard-size "
            f"({', '.join(changed)}); repeat its command, or give --output another folder."
        )
    return found


class PackedSource:
    """Records of a packed folder, as FolderSource gives them for the original folder, in the same order.

    Args:
        path: folder written by `python -m sparse_vis pack`.
        max_pixels: largest number of pixels of an image.

    Raises:
        UserError: `path` is no packed folder, is not finished, lacks a shard or part of one, or is not UTF-8.
    """

    def __init__(self, path: str, max_pixels: int = MAX_PIXELS):
        import grain

        folder, self.path, self.max_pixels = Path(path), path, max_pixels
        if not is_utf8(folder):
            raise UserError(
                f"{path!r} has a name that is not UTF-8, below which ArrayRecord cannot read; rename it."
            )
        try:
            metadata = read_metadata(folder)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"folder {path!r} holds no packed images ({METADATA}); write them with "
                f"`{COMMAND} --input=FOLDER --output=...`, or correct --config.data.path and "
                '--config.data.split (a subfolder, or "").'
            ) from None
        shards = metadata["shards"]
        done = sum(shard["records"] + len(shard["skipped"]) for shard in shards.values())
        if done != metadata["images"]:
            raise UserError(
                f"packed folder {path!r} is unfinished ({done} of {metadata['images']} images); "
                f"repeat the `{COMMAND}` that began it."
            )
        if not metadata["records"]:
            raise UserError(f"packed folder {path!r} holds no image, for all were skipped; pack others.")
        for name, shard in shards.items():
            self._check_shard(folder, name, shard)
        if metadata["version"] == WITHOUT_CHECKSUMS:
            say_once(
                f"note: {path} was packed by an earlier version, without a checksum: damage to its images is "
                f"noticed, but not all damage to {METADATA}."
            )
        self.classes, self.images_sha256 = tuple(metadata["classes"]), metadata["images_sha256"]
        self._shards = list(shards)
        self._ends = list(itertools.accumulate(shard["records"] for shard in shards.values()))
        # With the number of records in brackets, Grain does not open a shard until it is read.
        files = [f"{folder / name}[0:{shard['records']}]" for name, shard in shards.items()]
        self._records = grain.sources.ArrayRecordDataSource(files)

    def _check_shard(self, folder: Path, name: str, shard: dict[str, Any]) -> None:
        """Refuse a shard that lacks bytes or records; contents are checked when they are read."""
        problem = None
        if not has_shard(folder, name, shard):
            path = folder / name
            problem = f"of {path.stat().st_size} bytes, not {shard['bytes']}" if path.exists() else "missing"
        elif (found := count_records(folder / name)) != shard["records"]:
            problem = f"damaged ({found} records, {shard['records']} expected)"
        if problem:
            raise UserError(
                f"shard {name!r} of {self.path!r} is {problem}; copy it again, or repeat the `{COMMAND}` "
                "that wrote it."
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            record = unpack(self._records[index], len(self.classes))
            return record | {"max_pixels": self.max_pixels}
        except (RuntimeError, ValueError, IndexError) as error:
            number = bisect.bisect_right(self._ends, index)
            record = index - (self._ends[number - 1] if number else 0)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"record {record} of shard {self._shards[number]!r} of {self.path!r} is damaged ({reason}); "
                f"copy the shard again, or repeat the `{COMMAND}` that wrote it."
            ) from None

    def __repr__(self) -> str:
        return f"PackedSource({self.path!r}, {len(self)} images)"
