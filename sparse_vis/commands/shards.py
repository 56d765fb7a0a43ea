"""Parquet shards of features; docs/extraction.md describes the files.

A shard gets its name only when it is complete. Beside it is its entry, a JSON file with its checksum, so that
a damaged shard is never taken for a finished one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import CHECKSUM, checksum, file_sha256, read_json, whole, write_json
from sparse_vis.runtime.names import escaped, quoted

DTYPES = {"float32": pa.float32(), "float16": pa.float16()}

Skips = list[tuple[str, str]]  # (name, reason) of images that were left out


class Shard(NamedTuple):
    """The entry of a finished shard.

    Attributes:
        rows: number of rows. skipped: (name, reason) of images left out. bytes, sha256: of the file.
        settings: `fingerprint` of the extraction's settings. images, times: from `data.same.stamp`.
    """

    rows: int
    skipped: Skips
    bytes: int
    sha256: str
    settings: str
    images: str
    times: str


def make_schema(shapes: dict[str, list[int]], dtype: str) -> pa.Schema:
    """Schema of a shard's columns.

    Args:
        shapes: output -> [tokens, width]. dtype: one of DTYPES.
    """
    columns = [pa.field("name", pa.string()), pa.field("height", pa.int32()), pa.field("width", pa.int32())]
    for name, (tokens, width) in shapes.items():
        kind = pa.list_(DTYPES[dtype], tokens * width)
        columns.append(pa.field(name, kind, metadata={"shape": json.dumps([tokens, width])}))
    return pa.schema(columns)


def _table(rows: dict[str, list | np.ndarray], schema: pa.Schema) -> pa.Table:
    columns = []
    for name in schema.names:
        values = list(map(escaped, rows[name])) if name == "name" else rows[name]
        if isinstance(values, np.ndarray):
            if not np.isfinite(values).all():
                raise UserError(
                    f"Output {name!r} of a batch from {quoted(rows['name'][0])} on holds NaN or infinity: "
                    "use --dtype=float32, or another checkpoint if this one has diverged"
                )
            values = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)
        columns.append(values)
    return pa.table(columns, schema=schema)


def fingerprint(manifest: dict) -> str:
    """Checksum of an extraction's settings, hexadecimal; the path in "checkpoint" does not enter.

    Args:
        manifest: as for `open_output`.
    """
    return checksum({key: value for key, value in manifest.items() if key != "checkpoint"})


def entry_of(path: Path) -> Path:
    """Path of the entry of a shard."""
    return path.with_suffix(".json")


def write_shard(
    path: Path,
    schema: pa.Schema,
    batches: Iterator[dict[str, list | np.ndarray]],
    skipped: Skips,
    about: dict[str, str],
) -> None:
    """Write a shard and its entry; the shard is renamed to `path` last.

    Args:
        path: of the shard. schema: from `make_schema`.
        batches: rows by column; outputs are (m, tokens, width) arrays of the schema's dtype.
        skipped: images left out; read when `batches` has ended. about: `settings`, `images` and `times`
            of its entry.

    Raises:
        UserError: an output is not finite.
    """
    rows = 0
    # Features hardly compress, and dictionary encoding of floats only costs time. Page checksums are for
    # readers that have only the shard. An open file, because pyarrow takes paths with a colon for addresses.
    options = dict(compression="none", use_dictionary=False, write_page_checksum=True)
    with whole(path) as partial:
        with partial.open("wb") as file, pq.ParquetWriter(file, schema, **options) as writer:
            for columns in batches:
                writer.write_table(_table(columns, schema))
                rows += len(columns["name"])
        shard = Shard(rows, skipped, partial.stat().st_size, file_sha256(partial), **about)
        write_json(entry_of(path), shard._asdict())


def read_shard(path: Path, images: int, settings: str, *, content: bool) -> Shard:
    """The entry of a finished shard, after checking the shard against it.

    Args:
        path: of the shard. images: number planned for it. settings: `fingerprint` of the extraction.
        content: whether to check the whole content, not only the length.

    Raises:
        UserError: the shard or its entry is damaged, or has other settings.
    """
    entry = entry_of(path)
    try:
        found = read_json(entry)
        if CHECKSUM not in found:
            raise ValueError("it has no checksum")
        skipped = [(name, reason) for name, reason in found["skipped"]]
        about = {name: found[name] for name in ("sha256", "settings", "images", "times")}
        shard = Shard(found["rows"], skipped, found["bytes"], **about)
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
