"""Pack the images of any source into sharded ArrayRecord: `python -m sparse_vis pack --help`.

This turns millions of small files into a few large ones, which data/packed.py describes and reads. Each image
is decoded once as a check; the bytes of its file are stored unchanged.
"""

import functools
from collections.abc import Iterator
from typing import Any

import msgpack
from array_record.python.array_record_module import ArrayRecordWriter

from sparse_vis.commands import outputs
from sparse_vis.data import packed
from sparse_vis.data.decode import decode
from sparse_vis.data.folder import NAME_ERRORS, note_times, stamp
from sparse_vis.data.records import images_ahead, none_usable
from sparse_vis.data.sources import Source, announce, open_input
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import file_sha256, whole, write_json
from sparse_vis.runtime.paths import AnyPath, as_path
from sparse_vis.runtime.progress import Progress
from sparse_vis.runtime.skipped import MAX_PIXELS
from sparse_vis.runtime.tools import Parser

# One record per group, so that random access reads nothing else. Image files hardly compress.
WRITER_OPTIONS = "group_size:1,uncompressed"


def pack(
    *,
    images: str,
    output: AnyPath,
    shard_size: int,
    threads: int,
    on_error: str,
    split: str | None = None,
    data_dir: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Write the shards of a source, or continue an interrupted call; arguments are the flags of the tool.

    Raises UserError if there are no images, an image (or with on_error="skip" every image) cannot be used, or
    the output is the input or holds other images; OSError if the disk is full or fails.
    """
    if as_path(images).resolve() == output.resolve():
        raise UserError(f"--output={output} is the --input folder; give another.")
    source = open_input(images, split, data_dir, max_pixels)
    announce(source)
    if getattr(source, "sets", False):
        raise UserError(f"{source!r} has sets of classes, which packed folders do not keep; use it unpacked.")
    metadata = outputs.begin_or_continue(
        output / packed.METADATA,
        packed.describe(len(source), source.images_sha256, source.classes, shard_size),
        lambda path: packed.read_metadata(path.parent),
        free={"classes", "records", "shards"},  # classes follow from the names
    )
    shards, todo = metadata["shards"], unwritten(output, metadata, source)
    left = [index for rows in todo.values() for index in rows]
    progress = Progress("packing", len(source), len(source) - len(left))
    read = functools.partial(read_record, source)
    with images_ahead(source, read, left, threads=threads, ahead=4 * threads, on_error=on_error) as take:
        for name, rows in todo.items():
            records, skipped = take(len(rows))
            shards[name] = write_shard(output / name, records, progress)
            shards[name] |= {"skipped": skipped, **stamp(source, rows)}
            metadata["records"] = sum(shard["records"] for shard in shards.values())
            write_json(output / packed.METADATA, metadata)
            if skipped:
                progress.add(len(skipped))
    skipped = [entry for shard in shards.values() for entry in shard["skipped"]]
    for _, reason in skipped:
        print(f"skipped: {reason}")
    if not metadata["records"]:
        raise none_usable(len(source), skipped)
    what = f"{metadata['records']} images of {len(metadata['classes'])} classes in {len(shards)} shards"
    print(f"{output}: {what}, {len(skipped)} skipped")


def read_record(source: Source, index: int) -> bytes:
    """The packed bytes of a record. Raises UserError if the file cannot be read or decoded."""
    record = source[index]
    decode(record)
    del record["max_pixels"]  # readers set their own limit
    return msgpack.packb(record, unicode_errors=NAME_ERRORS)


def write_shard(path: AnyPath, records: Iterator[bytes], progress: Progress) -> dict[str, Any]:
    """Write a shard under a temporary name, then rename it; returns its `records`, `bytes` and `sha256`."""
    count = 0
    with whole(path) as partial:
        try:
            writer = ArrayRecordWriter(str(partial), WRITER_OPTIONS)
            for record in records:
                writer.write(record)
                count += 1
                progress.add(1)
            writer.close()
        except RuntimeError as error:  # the only type that ArrayRecord raises
            raise OSError(str(error)) from None
        if packed.count_records(partial) != count:
            raise OSError("the file is incomplete")
        return {"records": count, "bytes": partial.stat().st_size, "sha256": file_sha256(partial)}


def unwritten(output: AnyPath, metadata: dict[str, Any], source: Source) -> dict[str, range]:
    """Name -> indices of the images, for shards that are missing or damaged, or whose images have changed."""
    planned = packed.number_of_shards(metadata)
    todo = {packed.shard_name(k, planned): packed.images_of(metadata, k) for k in range(planned)}
    shards = metadata["shards"]
    there = [name for name, shard in shards.items() if packed.length(output / name) == shard["bytes"]]
    progress = Progress("checking finished shards", sum(len(todo[name]) for name in there))
    other_times = []
    for name in there:
        shard, now, why = shards[name], stamp(source, todo[name]), None
        if shard["images"] != now["images"]:
            why = "was made from images that have changed since"
        elif file_sha256(output / name) != shard["sha256"]:
            why = "is damaged"
        progress.add(len(todo[name]))
        if why:
            print(f"note: shard {name!r} of {str(output)!r} {why} and is written again.", flush=True)
            continue
        del todo[name]
        if shard["times"] != now["times"]:
            other_times.append(name)
    note_times(other_times)
    return todo


def main() -> None:
    parser = Parser(
        description="Pack all images of a folder or of another source into sharded ArrayRecord "
        "(docs/imagenet.md). The same command continues an interrupted packing."
    )
    parser.add_argument("--input", dest="images")
    parser.add_argument("--split")
    parser.add_argument("--data-dir")
    parser.add_argument("--output", help="folder for the shards: a new one, or an unfinished one to continue")
    for flag in ("--shard-size", "--threads", "--on-error", "--max-pixels"):
        parser.add_argument(flag)
    given = parser.parse_args()
    with outputs.writing(given.output, "packing", "finished shards"):
        pack(**vars(given))
