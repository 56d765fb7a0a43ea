"""Pack a folder of images into sharded ArrayRecord: `python -m sparse_vis pack --help`.

A few large files instead of millions of small ones; packed.py describes and reads them. Each image is decoded
once as a check; the bytes of its file are stored unchanged.
"""

from __future__ import annotations

import contextlib
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

from sparse_vis.data.decode import MAX_PIXELS, decode
from sparse_vis.data.folder import NAME_ERRORS, note_times, stamp
from sparse_vis.data.packed import (
    count_records,
    describe,
    has_shard,
    images_of,
    number_of_shards,
    open_output,
    shard_name,
    write_metadata,
)
from sparse_vis.data.records import ON_ERROR, load_ahead, usable
from sparse_vis.data.sources import FolderSource, announce, open_folder
from sparse_vis.runtime import lock, paths
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import file_sha256, whole
from sparse_vis.runtime.progress import Progress
from sparse_vis.runtime.tools import Parser, check_folder, positive

# One record per group, so that random access reads nothing else. Image files hardly compress.
WRITER_OPTIONS = "group_size:1,uncompressed"


def read_record(source: FolderSource, index: int) -> bytes:
    """The packed bytes of a record.

    Raises:
        UserError: the file cannot be read or decoded.
    """
    record = source[index]
    decode(record)
    del record["max_pixels"]  # readers set their own limit
    return msgpack.packb(record, unicode_errors=NAME_ERRORS)


def write_shard(path: Path, records: Iterator[bytes]) -> dict[str, Any]:
    """Write a shard under a temporary name, then rename it; returns its `records`, `bytes` and `sha256`.

    Raises:
        UserError: the disk is full or fails.
    """
    count = 0
    try:
        with whole(path) as partial:
            writer = ArrayRecordWriter(str(partial), WRITER_OPTIONS)
            for count, record in enumerate(records, start=1):  # noqa: B007
                writer.write(record)
            writer.close()
            if count_records(partial) != count:
                raise RuntimeError("not all that was written is there")
            return {"records": count, "bytes": partial.stat().st_size, "sha256": file_sha256(partial)}
    except RuntimeError as error:  # the only type that ArrayRecord raises
        raise UserError(
            f"cannot write {str(path)!r} ({error}); finished shards are kept: make room and repeat the "
            "command."
        ) from None


def unwritten(output: Path, metadata: dict[str, Any], source: FolderSource) -> dict[str, range]:
    """Shards to write -> indices of their images: shards that are missing, damaged, or of replaced images.

    Args:
        output: folder of the shards. metadata: from `open_output`. source: of the images.
    """
    planned = number_of_shards(metadata)
    todo = {shard_name(number, planned): images_of(metadata, number) for number in range(planned)}
    there = {
        name: len(todo[name]) for name, shard in metadata["shards"].items() if has_shard(output, name, shard)
    }
    progress, other_times = Progress("checking finished shards", sum(there.values())), []
    for name, images in there.items():
        shard, why = metadata["shards"][name], None
        now = stamp(source, todo[name])
        if shard["images"] != now["images"]:
            why = "is of images that have changed"
        elif file_sha256(output / name) != shard["sha256"]:
            why = "is damaged"
        if why is None and shard["times"] != now["times"]:
            other_times.append(name)
        if why:
            print(f"note: shard {name!r} of {str(output)!r} {why} and is written again.", flush=True)
        else:
            del todo[name]
        progress.add(images)
    note_times(other_times)
    return todo


def counted(futures: Iterator[tuple[int, Future]], progress: Progress) -> Iterator[tuple[int, Future]]:
    """The same futures; each is counted as progress when it is done."""
    for index, future in futures:
        future.exception()  # waits until it is done
        progress.add(1)
        yield index, future


def pack(
    *, folder: str, output: Path, shard_size: int, threads: int, on_error: str, max_pixels: int = MAX_PIXELS
) -> None:
    """Write the shards of a folder, or continue an interrupted call.

    Args:
        folder: with images. output: folder of the shards. shard_size: images per shard.
        threads: for reading and decoding. on_error: "stop" or "skip" at an unusable image.
        max_pixels: images with more are unusable.

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
    shards, todo = metadata["shards"], unwritten(output, metadata, source)
    left = [index for rows in todo.values() for index in rows]
    read = functools.partial(read_record, source)
    progress = Progress("packing", len(source), len(source) - len(left))
    # Closed here: else, after an error such as a full disk, one of its own threads might have to close it,
    # and would wait for itself.
    with contextlib.closing(load_ahead(read, left, threads, ahead=4 * threads)) as loaded:
        futures = counted(loaded, progress)
        for name, rows in todo.items():
            skipped: list[tuple[str, str]] = []
            images = usable(source, islice(futures, len(rows)), on_error, skipped)
            shards[name] = write_shard(output / name, images) | {"skipped": skipped, **stamp(source, rows)}
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
        prog=sys.argv[0],
        description="Pack all images below a folder into sharded ArrayRecord (docs/imagenet.md). Labels are "
        "the first-level subfolders. The same command continues an interrupted packing.",
    )
    add = parser.add_argument
    add(
        "--input",
        required=True,
        dest="folder",
        type=paths.folder,
        metavar="FOLDER",
        help="folder of images",
    )
    add("--output", required=True, type=paths.path, metavar="FOLDER", help="of the shards, new or begun")
    add("--shard-size", type=int, default=4096, help="images per shard (%(default)s)")
    add("--threads", type=int, default=os.cpu_count(), help="that read and decode images (%(default)s)")
    add("--on-error", choices=ON_ERROR, default="stop", help="when an image cannot be used (%(default)s)")
    add("--max-pixels", type=positive, default=MAX_PIXELS, help="of an image that is used (%(default)s)")
    arguments = parser.parse_args()
    try:
        check_folder(arguments.output)
        with lock.hold(arguments.output, "packing"):
            pack(**vars(arguments))
    except OSError as error:
        raise UserError(
            f"cannot write {str(arguments.output)!r} ({error}); finished shards are kept: make room and "
            "repeat the command, or give another --output."
        ) from None
    except KeyboardInterrupt:
        sys.exit("interrupted: finished shards are kept, the same command continues")
