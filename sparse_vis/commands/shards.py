"""The folder of an extraction, Parquet shards and their manifest; docs/extraction.md describes the files.

A shard gets its name only when it is complete. Beside it is its entry, a JSON file with its checksum, so that
a damaged shard is never taken for a finished one.
"""

import json
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparse_vis.commands.outputs import begin_or_continue
from sparse_vis.data.folder import note_times
from sparse_vis.data.records import none_usable
from sparse_vis.runtime import files, skipped
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.names import escaped, quoted
from sparse_vis.runtime.paths import AnyPath
from sparse_vis.runtime.progress import REPORT_SECONDS
from sparse_vis.runtime.skipped import Skips

DTYPES = {"float32": pa.float32(), "float16": pa.float16()}
POLL_SECONDS = 0.2
MANIFEST = "manifest.json"
Columns = dict[str, list | np.ndarray]  # rows by column; outputs are (m, tokens, width)


class Shard(NamedTuple):
    """The entry of a finished shard."""

    rows: int
    skipped: Skips
    bytes: int  # of the file
    sha256: str  # of the file
    settings: str  # `fingerprint` of the extraction's manifest
    images: str  # this and times: `data.folder.stamp` of its images
    times: str


def fingerprint(manifest: dict[str, Any]) -> str:
    """Checksum of an extraction's settings, hexadecimal; the path in "checkpoint" does not enter."""
    return files.checksum({key: value for key, value in manifest.items() if key != "checkpoint"})


def entry_of(path: AnyPath) -> AnyPath:
    return path.with_suffix(".json")


def plan(output: AnyPath, images: int, shard_size: int) -> dict[AnyPath, range]:
    """Path of every shard -> indices of its images."""
    rows = [range(images)[start : start + shard_size] for start in range(0, images, shard_size)]
    return {output / f"features-{k:05d}-of-{len(rows):05d}.parquet": row for k, row in enumerate(rows)}


def open_output(output: AnyPath, manifest: dict[str, Any], first: bool) -> None:
    """Create the output folder with its manifest, or check that it belongs to the same extraction.

    The `first` process creates the folder, the others wait for it. Raises UserError if it holds other files,
    features with other settings, or a damaged manifest.
    """
    path, planned = output / MANIFEST, plan(output, manifest["images"], manifest["shard_size"])
    if not first:
        wait_for([path], "manifest")
    # Shards may be there without the manifest: their entries have a fingerprint of the settings.
    ours = {skipped.FILE, *(file.name for shard in planned for file in (shard, entry_of(shard)))}
    free = {"checkpoint", "shards", "classes"}  # classes: their checksum is compared
    begin_or_continue(path, manifest, _read_manifest, free=free, ours=ours)


def _read_manifest(path: AnyPath) -> dict[str, Any]:
    remedy = "delete it and repeat the command, or give --output another folder."
    with explained(ValueError, f"{path} is damaged or is not the manifest of an extraction", remedy):
        return files.read_json(path)


def wait_for(paths: list[AnyPath], what: str) -> None:
    """Wait until other processes have written these files, called `what` in the line printed meanwhile."""
    printed = time.perf_counter()
    while missing := [path for path in paths if not path.exists()]:
        time.sleep(POLL_SECONDS)
        if time.perf_counter() - printed >= REPORT_SECONDS:
            printed = time.perf_counter()
            print(f"waiting for the other processes: {len(missing)} {what} are missing", flush=True)


def drop_changed(shards: dict[AnyPath, dict[str, str]]) -> None:
    """Delete the shards whose images have changed; `shards`: path → `stamp` of the images as they are now."""
    other_times = []
    for path, now in shards.items():
        try:
            entry = files.read_json(entry_of(path))
            images, times = entry["images"], entry["times"]
        except (OSError, ValueError, KeyError):  # missing or damaged, as `read_shard` will report
            continue
        if images != now["images"]:
            print(f"note: images of {path.name} have changed; it is written again", flush=True)
            path.unlink(missing_ok=True)
        elif times != now["times"]:
            other_times.append(path.name)
    note_times(other_times)


def finish(output: AnyPath, manifest: dict[str, Any], shards: dict[AnyPath, range]) -> tuple[int, int]:
    """Complete the folder when all shards exist: write skipped.txt, and the manifest with the shards' rows.

    Returns the numbers of rows and of skipped images. Raises UserError if no image could be used, or if the
    length or the number of rows of a shard is wrong.
    """
    settings, said, rows, skips = fingerprint(manifest), {}, 0, []
    for path, images in shards.items():
        # The processes that found or wrote the shards have checked their contents.
        shard = read_shard(path, len(images), settings, content=False)
        rows += shard.rows
        skips += shard.skipped
        about = {"rows": shard.rows, "skipped": len(shard.skipped)}
        said[path.name] = {**about, "bytes": shard.bytes, "sha256": shard.sha256}
    files.write_whole(output / skipped.FILE, "".join(sorted(skipped.lines(skips))))
    files.write_json(output / MANIFEST, manifest | {"shards": said})
    if not rows:
        raise none_usable(len(skips), skips)
    return rows, len(skips)


def complete(output: AnyPath) -> dict[str, Any]:
    """The manifest of a finished extraction. Raises UserError if it is damaged or not finished."""
    manifest = _read_manifest(output / MANIFEST)
    if "shards" not in manifest or files.CHECKSUM not in manifest:
        raise UserError(f"the extraction {output} is not complete; repeat the command that began it.")
    return manifest


def read_columns(output: AnyPath, manifest: dict[str, Any], columns: list[str]) -> pa.Table:
    """Columns of all shards of a finished extraction. Raises UserError if a shard is missing or damaged."""
    tables = []
    for name, said in sorted(manifest["shards"].items()):
        path = output / name
        if not path.is_file() or files.file_sha256(path) != said["sha256"]:
            raise UserError(f"shard {path} is missing or damaged; repeat the extraction to write it again.")
        with path.open("rb") as file:  # pyarrow takes paths with a colon for addresses
            tables.append(pq.read_table(file, columns=columns))
    return pa.concat_tables(tables).combine_chunks()


def make_schema(shapes: dict[str, list[int]], dtype: str, labelled: bool = False) -> pa.Schema:
    """Schema of a shard's columns. `shapes`: output -> [tokens, width]; `dtype`: one of DTYPES."""
    numbers = ("height", "width", *(("label",) if labelled else ()))
    columns = [pa.field("name", pa.string()), *(pa.field(number, pa.int32()) for number in numbers)]
    for name, (tokens, width) in shapes.items():
        kind = pa.list_(DTYPES[dtype], tokens * width)
        columns.append(pa.field(name, kind, metadata={"shape": json.dumps([tokens, width])}))
    return pa.schema(columns)


def _table(rows: Columns, schema: pa.Schema) -> pa.Table:
    columns = []
    for name in schema.names:
        values = list(map(escaped, rows[name])) if name == "name" else rows[name]
        if isinstance(values, np.ndarray):
            if not np.isfinite(values).all():
                raise UserError(
                    f"output {name!r} contains NaN or infinity in the batch that starts at "
                    f"{quoted(rows['name'][0])}; use --dtype=float32, or another checkpoint if its "
                    "training diverged."
                )
            values = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)
        columns.append(values)
    return pa.table(columns, schema=schema)


def write_shard(
    path: AnyPath, schema: pa.Schema, batches: Iterable[Columns], skipped: Skips, about: dict[str, str]
) -> None:
    """Write a shard and its entry; the shard is renamed to `path` last.

    `skipped` is read after the last of `batches`; `about` has `settings`, `images` and `times` of the entry.
    Raises UserError if an output is not finite.
    """
    rows = 0
    # Features hardly compress, and dictionary encoding of floats only costs time. Page checksums are for
    # readers that have only the shard. An open file, because pyarrow takes paths with a colon for addresses.
    options = dict(compression="none", use_dictionary=False, write_page_checksum=True)
    with files.whole(path) as partial:
        with partial.open("wb") as file, pq.ParquetWriter(file, schema, **options) as writer:
            for columns in batches:
                writer.write_table(_table(columns, schema))
                rows += len(columns["name"])
        shard = Shard(rows, skipped, partial.stat().st_size, files.file_sha256(partial), **about)
        files.write_json(entry_of(path), shard._asdict())


def read_shard(path: AnyPath, images: int, settings: str, *, content: bool) -> Shard:
    """The entry of a finished shard, after checking the shard against it: its `content`, or only its length.

    Raises UserError if either is damaged, or is of another number of `images` or other `settings` (a
    `fingerprint`).
    """
    entry = entry_of(path)
    try:
        found = files.read_json(entry)
        if files.CHECKSUM not in found:
            raise ValueError("it has no checksum")
        shard = Shard(**{name: found[name] for name in Shard._fields})
        shard = shard._replace(skipped=[(name, reason) for name, reason in shard.skipped])
        found_images = shard.rows + len(shard.skipped)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be used ({error})"
        raise UserError(f"{entry} {what}; delete {path.name} and repeat the command.") from None
    if shard.settings != settings:
        raise UserError(
            f"shard {path} was written with other settings; give --output another folder, or delete the "
            "shard and repeat the command."
        )
    if path.stat().st_size != shard.bytes:
        problem = f"{path.stat().st_size} bytes of {shard.bytes}"
    elif found_images != images:
        problem = f"{shard.rows} rows and {len(shard.skipped)} skipped images of {images}"
    elif content and files.file_sha256(path) != shard.sha256:
        problem = "its checksum does not match"
    else:
        return shard
    raise UserError(f"shard {path} is damaged ({problem}); delete it and repeat the command.")
