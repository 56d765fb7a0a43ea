"""Pack a folder of images into sharded ArrayRecord: `python -m sparse_vis.data.pack --help`.

A few large files instead of millions of small ones; packed.py describes and reads them. Each image is decoded
once to see that it can be, and stored as it is.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack
from array_record.python.array_record_module import ArrayRecordWriter

from sparse_vis.data.ahead import ON_ERROR, load_ahead, usable
from sparse_vis.data.decode import decode
from sparse_vis.data.image_file import MAX_PIXELS
from sparse_vis.data.packed import NAME_ERRORS, describe, has_shard, open_output, write_metadata
from sparse_vis.data.sources import FolderSource, announce, open_folder
from sparse_vis.errors import UserError, command_line
from sparse_vis.progress import Progress
from sparse_vis.tools import Parser, check_folder, positive

# One record a group: random access reads nothing else. Image files hardly compress.
WRITER_OPTIONS = "group_size:1,uncompressed"


def read_record(source: FolderSource, index: int) -> bytes:
    """A record as it is stored.

    Raises:
        UserError: the file cannot be read or decoded.
    """
    record = source[index]
    decode(record)
    del record["max_pixels"]  # whoever reads it sets a limit
    return msgpack.packb(record, unicode_errors=NAME_ERRORS)


def write_shard(path: Path, records: Iterator[bytes]) -> int:
    """Write a shard under a temporary name, then rename it; returns the number of records.

    Raises:
        UserError: the disk is full or fails.
    """
    partial, count = path.with_name(path.name + ".partial"), 0
    try:
        writer = ArrayRecordWriter(str(partial), WRITER_OPTIONS)
        for count, record in enumerate(records, start=1):  # noqa: B007
            writer.write(record)
        writer.close()
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except RuntimeError as error:  # all that ArrayRecord raises
        raise UserError(
            f"cannot write {str(path)!r} ({error}); make room and repeat the command, which goes on there."
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return count


def unwritten(output: Path, metadata: dict[str, Any]) -> dict[str, range]:
    """Image numbers by name of the shards that are still to be written.

    Args:
        output: folder of the shards. metadata: of `open_output`.
    """
    starts, todo = range(0, metadata["images"], metadata["shard_size"]), {}
    for number, start in enumerate(starts):
        name = f"images-{number:05d}-of-{len(starts):05d}.array_record"
        if name not in metadata["shards"] or not has_shard(output, name, metadata["shards"][name]):
            todo[name] = range(start, min(start + metadata["shard_size"], metadata["images"]))
    return todo


def counted(futures: Iterator[tuple[int, Future]], progress: Progress) -> Iterator[tuple[int, Future]]:
    """The same futures, each counted when it is done."""
    for index, future in futures:
        future.exception()  # waits
        progress.add(1)
        yield index, future


def pack(
    *, folder: str, output: Path, shard_size: int, threads: int, on_error: str, max_pixels: int = MAX_PIXELS
) -> None:
    """Write the shards of a folder, or go on where an earlier call was interrupted.

    Args:
        folder: with images. output: folder of the shards. shard_size: images per shard.
        threads: that read and decode. on_error: "stop" or "skip" where an image cannot be used.
        max_pixels: an image with more cannot be used.

    Raises:
        UserError: no images, an output of other images, or an image that cannot be used.
    """
    for flag, value in (("--shard-size", shard_size), ("--threads", threads)):
        if value < 1:
            raise UserError(f"{flag}={value} is too small; give at least 1.")
    check_folder(output)
    source = open_folder(folder, max_pixels)
    announce(source)
    metadata = open_output(output, describe(source.names, source.classes, shard_size))
    shards, todo = metadata["shards"], unwritten(output, metadata)
    left = [index for rows in todo.values() for index in rows]
    read = functools.partial(read_record, source)
    progress = Progress("packing", len(source), len(source) - len(left))
    futures = counted(load_ahead(read, left, threads, ahead=4 * threads), progress)
    for name, rows in todo.items():
        skipped: list[tuple[str, str]] = []
        records = write_shard(output / name, usable(source, islice(futures, len(rows)), on_error, skipped))
        size = (output / name).stat().st_size
        shards[name] = {"records": records, "bytes": size, "skipped": skipped}
        metadata["records"] = sum(shard["records"] for shard in shards.values())
        write_metadata(output, metadata)
    summarize(output, metadata)


def summarize(output: Path, metadata: dict[str, Any]) -> None:
    """Print what was packed and what was not.

    Raises:
        UserError: nothing was packed.
    """
    skipped = [entry for shard in metadata["shards"].values() for entry in shard["skipped"]]
    for _, reason in skipped:
        print(f"skipped: {reason}")
    if not metadata["records"]:
        raise UserError(f"none of the {metadata['images']} images can be used; check --input.")
    print(
        f"{output}: {metadata['records']} images of {len(metadata['classes'])} classes in "
        f"{len(metadata['shards'])} shards, {len(skipped)} skipped"
    )


def main() -> None:
    """Command line; see --help."""
    parser = Parser(
        prog="python -m sparse_vis.data.pack",
        description="Pack all images below a folder into sharded ArrayRecord (docs/imagenet.md). Labels are "
        "the first-level subfolders. The same command continues an interrupted packing.",
    )
    add = parser.add_argument
    add("--input", required=True, dest="folder", metavar="FOLDER", help="folder of images")
    add("--output", required=True, type=Path, metavar="FOLDER", help="of the shards, new or begun")
    add("--shard-size", type=int, default=4096, help="images per shard (%(default)s)")
    add("--threads", type=int, default=os.cpu_count(), help="that read and decode images (%(default)s)")
    add("--on-error", choices=ON_ERROR, default="stop", help="when an image cannot be used (%(default)s)")
    add("--max-pixels", type=positive, default=MAX_PIXELS, help="of an image that is used (%(default)s)")
    arguments = parser.parse_args()
    try:
        pack(**vars(arguments))
    except OSError as error:
        raise UserError(f"cannot write {str(arguments.output)!r} ({error}); give another --output.") from None
    except KeyboardInterrupt:
        sys.exit("interrupted: finished shards are kept, the same command continues")


if __name__ == "__main__":
    command_line(main)
