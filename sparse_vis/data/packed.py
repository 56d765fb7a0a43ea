"""Packed images: the files of a folder in a few large shards, written by `python -m sparse_vis.data.pack`.

Shards are ArrayRecord; a record is a msgpack map of `image` (the bytes of the file), `name` and, where the
folder has classes, `label`. The file packed.json beside them says what they hold: docs/imagenet.md.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import msgpack

from sparse_vis.data.image_file import MAX_PIXELS
from sparse_vis.errors import UserError
from sparse_vis.runtime.files import write_whole

METADATA, VERSION = "packed.json", 1
KEYS = ("version", "images", "images_sha256", "classes", "shard_size", "records", "shards")
NAME_ERRORS = "surrogateescape"  # a file's name need not be UTF-8
COMMAND = "python -m sparse_vis.data.pack"


def read_metadata(folder: Path) -> dict[str, Any]:
    """The content of a packed folder's packed.json.

    Raises:
        UserError: it is damaged, or of another version.
        FileNotFoundError: there is none.
    """
    path = folder / METADATA
    try:
        metadata = json.loads(path.read_text())
        version = metadata["version"]
        complete = version != VERSION or set(KEYS) <= metadata.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise UserError(f"{path} is damaged; delete its folder and repeat `{COMMAND}`.")
    if version != VERSION:
        raise UserError(
            f"{path} is of version {version}, this program reads {VERSION}; "
            f"pack the images again with `{COMMAND}`."
        )
    return metadata


def has_shard(folder: Path, name: str, shard: dict[str, Any]) -> bool:
    """Whether a shard lies in the folder at its full length."""
    path = folder / name
    return path.is_file() and path.stat().st_size == shard["bytes"]


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


def open_output(output: Path, new: dict[str, Any]) -> dict[str, Any]:
    """The metadata to go on from: of an earlier call with the same images, or new.

    Args:
        output: folder, made if needed. new: of `describe`.

    Raises:
        UserError: the folder holds something else.
    """
    output.mkdir(parents=True, exist_ok=True)
    try:
        found = read_metadata(output)
    except FileNotFoundError:
        if any(output.iterdir()):
            raise UserError(
                f"folder {str(output)!r} holds something else; give --output a new or empty folder."
            ) from None
        write_metadata(output, new)
        return new
    changed = [name for name in new if name not in ("records", "shards") and found[name] != new[name]]
    if changed:
        raise UserError(
            f"folder {str(output)!r} was packed from other images or with another --shard-size "
            f"({', '.join(changed)}); repeat its command, or give --output another folder."
        )
    return found


def write_metadata(output: Path, metadata: dict[str, Any]) -> None:
    """Replace packed.json, so that it is there whole or not at all."""
    write_whole(output / METADATA, json.dumps(metadata, indent=1) + "\n")


class PackedSource:
    """Records of a packed folder: those of the folder source, in the same order.

    Args:
        path: the folder that `python -m sparse_vis.data.pack` wrote.
        max_pixels: largest number of pixels of an image.

    Raises:
        UserError: it is no packed folder, is not finished, or lacks a shard or part of one.
    """

    def __init__(self, path: str, max_pixels: int = MAX_PIXELS):
        import grain

        folder, self.path, self.max_pixels = Path(path), path, max_pixels
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
        for name, shard in shards.items():
            if not has_shard(folder, name, shard):
                state = "cut short" if (folder / name).exists() else "missing"
                raise UserError(
                    f"shard {name!r} of {path!r} is {state}; copy it again, or repeat the `{COMMAND}` "
                    "that wrote it."
                )
        self.classes, self.images_sha256 = tuple(metadata["classes"]), metadata["images_sha256"]
        self._shards = list(shards)
        self._ends = list(itertools.accumulate(shard["records"] for shard in shards.values()))
        # With the number of records in brackets no shard is opened before it is read.
        files = [f"{folder / name}[0:{shard['records']}]" for name, shard in shards.items()]
        self._records = grain.sources.ArrayRecordDataSource(files)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            record = msgpack.unpackb(self._records[index], unicode_errors=NAME_ERRORS)
            return record | {"max_pixels": self.max_pixels}
        except (RuntimeError, ValueError) as error:
            shard = self._shards[bisect.bisect_right(self._ends, index)]
            reason = str(error).splitlines()[0]
            raise UserError(
                f"shard {shard!r} of {self.path!r} is damaged ({reason}); copy it again, or delete it and "
                f"repeat the `{COMMAND}` that wrote it."
            ) from None

    def __repr__(self) -> str:
        return f"PackedSource({self.path!r}, {len(self)} images)"
