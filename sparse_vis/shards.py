"""Parquet shards of features and the folder they are in; docs/extraction.md describes the files.

A shard appears under its name only when it is complete, and a manifest tells a continued extraction from
another one. Beside each shard lies its entry, a JSON file with its checksum, so that nothing damaged is taken
for finished.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparse_vis.errors import UserError
from sparse_vis.progress import REPORT_SECONDS
from sparse_vis.runtime.files import (
    CHECKSUM,
    checksum,
    file_sha256,
    holds_files,
    read_json,
    whole,
    write_json,
    write_whole,
)

POLL_SECONDS = 0.2
DTYPES = {"float32": pa.float32(), "float16": pa.float16()}
MANIFEST, SKIPPED = "manifest.json", "skipped.txt"

Skips = list[tuple[str, str]]  # (name, reason) of images that were left out


class Shard(NamedTuple):
    """What is known of a finished shard: its entry. `settings` is the fingerprint of its extraction's."""

    rows: int
    skipped: Skips
    bytes: int
    sha256: str
    settings: str


def make_schema(shapes: dict[str, list[int]], dtype: str) -> pa.Schema:
    """Columns of a shard.

    Args:
        shapes: [tokens, width] of every output. dtype: of DTYPES.
    """
    columns = [pa.field("name", pa.string()), pa.field("height", pa.int32()), pa.field("width", pa.int32())]
    for name, (tokens, width) in shapes.items():
        kind = pa.list_(DTYPES[dtype], tokens * width)
        columns.append(pa.field(name, kind, metadata={"shape": json.dumps([tokens, width])}))
    return pa.schema(columns)


def _table(rows: dict[str, list | np.ndarray], schema: pa.Schema) -> pa.Table:
    columns = []
    for name in schema.names:
        values = rows[name]
        if isinstance(values, np.ndarray):
            if not np.isfinite(values).all():
                raise UserError(
                    f"Output {name!r} of a batch from {rows['name'][0]!r} on holds NaN or infinity: "
                    "use --dtype=float32, or another checkpoint if this one has diverged"
                )
            values = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)
        columns.append(values)
    return pa.table(columns, schema=schema)


def fingerprint(manifest: dict) -> str:
    """What tells an extraction's settings from others', hexadecimal; "checkpoint" is but a note.

    Args:
        manifest: of `open_output`.
    """
    return checksum({key: value for key, value in manifest.items() if key != "checkpoint"})


def entry_of(path: Path) -> Path:
    """The entry that lies beside a shard."""
    return path.with_suffix(".json")


def write_shard(
    path: Path,
    schema: pa.Schema,
    batches: Iterator[dict[str, list | np.ndarray]],
    skipped: Skips,
    settings: str,
) -> None:
    """Write a shard and its entry; the shard gets its name last.

    Args:
        path: of the shard. schema: of `make_schema`.
        batches: rows by column; outputs are (m, tokens, width) arrays of the schema's dtype.
        skipped: images left out; read when `batches` has ended. settings: `fingerprint` of them.

    Raises:
        UserError: an output is not finite.
    """
    rows = 0
    # Features hardly compress, and dictionaries of floats only cost time. Page checksums are for readers
    # who have nothing but the shard. An open file, for pyarrow takes a path with a colon for an address.
    options = dict(compression="none", use_dictionary=False, write_page_checksum=True)
    with whole(path) as partial:
        with partial.open("wb") as file, pq.ParquetWriter(file, schema, **options) as writer:
            for columns in batches:
                writer.write_table(_table(columns, schema))
                rows += len(columns["name"])
        shard = Shard(rows, skipped, partial.stat().st_size, file_sha256(partial), settings)
        write_json(entry_of(path), shard._asdict())


def read_shard(path: Path, images: int, settings: str, *, content: bool) -> Shard:
    """The entry of a finished shard, once the shard is what it says.

    Args:
        path: of the shard. images: it was planned for. settings: `fingerprint` of them.
        content: whether to read all of the shard, and not only its length.

    Raises:
        UserError: the shard or its entry is damaged, or of other settings.
    """
    entry = entry_of(path)
    try:
        found = read_json(entry)
        if CHECKSUM not in found:
            raise ValueError("it has no checksum")
        skipped = [(name, reason) for name, reason in found["skipped"]]
        shard = Shard(found["rows"], skipped, found["bytes"], found["sha256"], found["settings"])
        found_images = shard.rows + len(skipped)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be used ({error})"
        raise UserError(f"{entry} {what}; delete {path.name} to have both written again.") from None
    if shard.settings != settings:
        raise UserError(
            f"shard {path} is of an extraction with other settings; give --output another folder, or delete "
            "it to have it written again."
        )
    if path.stat().st_size != shard.bytes:
        problem = f"{path.stat().st_size} bytes of {shard.bytes}"
    elif found_images != images:
        problem = f"{shard.rows} rows and {len(skipped)} skipped images of {images}"
    elif content and file_sha256(path) != shard.sha256:
        problem = "its checksum is not the one it was written with"
    else:
        return shard
    raise UserError(f"shard {path} is damaged ({problem}); delete it to have it written again.")


def plan(output: Path, images: int, shard_size: int) -> dict[Path, range]:
    """Numbers of the images of every shard.

    Args:
        output: folder of the shards. images: of the extraction. shard_size: images per shard.
    """
    starts, shards = range(0, images, shard_size), {}
    for number, start in enumerate(starts):
        path = output / f"features-{number:05d}-of-{len(starts):05d}.parquet"
        shards[path] = range(start, min(start + shard_size, images))
    return shards


def wait_for(paths: list[Path], what: str) -> None:
    """Return when all these files are there; other processes write them.

    Args:
        paths: in a folder that the processes share. what: they are, for the line that is printed meanwhile.
    """
    printed = time.perf_counter()
    while missing := [path for path in paths if not path.exists()]:
        time.sleep(POLL_SECONDS)
        if time.perf_counter() - printed >= REPORT_SECONDS:
            printed = time.perf_counter()
            print(f"waiting for {len(missing)} {what} of the other processes", flush=True)


def finish(output: Path, manifest: dict, shards: dict[Path, range]) -> tuple[int, int]:
    """Write what is known when all shards are there: skipped.txt, and the manifest with the shards' rows.

    Args:
        output: folder. manifest: of `open_output`. shards: all of them, of `plan`.

    Returns:
        (rows, skipped images) of all shards.

    Raises:
        UserError: a shard is damaged, as far as its length and number of rows tell.
    """
    # Their contents were checked by the processes that found or wrote them.
    settings = fingerprint(manifest)
    found = {
        path.name: read_shard(path, len(images), settings, content=False) for path, images in shards.items()
    }
    skips = sorted(f"{name}\t{reason}\n" for shard in found.values() for name, reason in shard.skipped)
    write_whole(output / SKIPPED, "".join(skips))
    said = {
        name: {
            "rows": shard.rows,
            "skipped": len(shard.skipped),
            "bytes": shard.bytes,
            "sha256": shard.sha256,
        }
        for name, shard in found.items()
    }
    write_json(output / MANIFEST, manifest | {"shards": said})
    return sum(shard.rows for shard in found.values()), len(skips)


def open_output(output: Path, manifest: dict, first: bool) -> None:
    """Create the output folder with its manifest, or make sure that it belongs to the same extraction.

    Args:
        output: folder. manifest: of this extraction; its "checkpoint" is a note and may differ.
        first: whether this is the process that creates; others wait for it.

    Raises:
        UserError: it holds something else, features of other settings, or a damaged manifest.
    """
    from sparse_vis.train.settings import differences

    path = output / MANIFEST
    if first and not path.exists():
        # Shards whose manifest is lost say themselves whether they are of these settings.
        planned = plan(output, manifest["images"], manifest["shard_size"])
        ours = {SKIPPED, *(file.name for shard in planned for file in (shard, entry_of(shard)))}
        if holds_files(output, ours):
            raise UserError(f"folder {output} holds something else; give --output a new or empty folder.")
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, manifest)
        return
    wait_for([path], "manifest")
    try:
        found = read_json(path)
    except ValueError as error:
        raise UserError(
            f"{path} is damaged, or no manifest of an extraction ({error}); delete it to have it written "
            "again, or give --output another folder."
        ) from None
    free = {"checkpoint": "", "shards": {}, CHECKSUM: ""}
    if changed := differences(found | free, manifest | free):
        raise UserError(
            f"folder {output} holds features of another extraction ({'; '.join(changed)}); "
            "repeat its settings, or give --output another folder."
        )
    if CHECKSUM not in found:
        raise UserError(
            f"the features in {output} are of an earlier version, which kept no checksums, so they cannot be "
            "continued; they can be read as before: give --output another folder."
        )
