"""Parquet shards of features and the folder they are in; docs/extraction.md describes the files.

A shard appears under its name only when it is complete, and a manifest tells a continued extraction from
another one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparse_vis.errors import UserError

DTYPES = {"float32": pa.float32(), "float16": pa.float16()}
MANIFEST, SKIPPED = "manifest.json", "skipped.txt"

Skips = list[tuple[str, str]]  # (name, reason) of images that were left out


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


def write_shard(
    path: Path, schema: pa.Schema, batches: Iterator[dict[str, list | np.ndarray]], skipped: Skips
) -> None:
    """Write a shard under a temporary name, then rename it.

    Args:
        path: of the shard. schema: of `make_schema`.
        batches: rows by column; outputs are (m, tokens, width) arrays of the schema's dtype.
        skipped: images left out; read when `batches` has ended.

    Raises:
        UserError: an output is not finite.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        # Features hardly compress, and dictionaries of floats only cost time.
        with pq.ParquetWriter(partial, schema, compression="none", use_dictionary=False) as writer:
            for rows in batches:
                writer.write_table(_table(rows, schema))
            # In the shard itself, so that it cannot disagree with the rows that are there.
            writer.add_key_value_metadata({"skipped": json.dumps(skipped)})
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read_skipped(path: Path) -> Skips:
    try:
        return [(name, reason) for name, reason in json.loads(pq.read_metadata(path).metadata[b"skipped"])]
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"Shard {path} is damaged ({reason}): delete it to have it written again") from None


def survey(output: Path, images: int, shard_size: int) -> tuple[dict[Path, range], dict[Path, Skips]]:
    """What is still to do, and what finished shards left out.

    Args:
        output: folder of the shards. images: of the extraction. shard_size: images per shard.

    Returns:
        (todo, skipped): image numbers by unwritten shard; skipped images by finished shard.

    Raises:
        UserError: a shard cannot be read.
    """
    starts, todo, skipped = range(0, images, shard_size), {}, {}
    for number, start in enumerate(starts):
        path = output / f"features-{number:05d}-of-{len(starts):05d}.parquet"
        if path.exists():
            skipped[path] = _read_skipped(path)
        else:
            todo[path] = range(start, min(start + shard_size, images))
    return todo, skipped


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def open_output(output: Path, manifest: dict) -> None:
    """Create the output folder with its manifest, or make sure that it belongs to the same extraction.

    Args:
        output: folder. manifest: of this extraction; its "checkpoint" is a note and may differ.

    Raises:
        UserError: it holds something else, or features of other settings.
    """
    from sparse_vis.train.settings import differences

    path = output / MANIFEST
    if output.exists() and not output.is_dir():
        raise UserError(f"Output {output} is a file: give --output a new or empty folder")
    if not path.exists():
        if output.is_dir() and any(output.iterdir()):
            raise UserError(f"Folder {output} holds something else: give --output a new or empty folder")
        output.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(manifest, indent=2) + "\n")
        return
    try:
        saved = json.loads(path.read_text())
        changed = differences(saved | {"checkpoint": ""}, manifest | {"checkpoint": ""})
    except (ValueError, TypeError):
        raise UserError(f"{path} is no manifest of an extraction: give --output another folder") from None
    if changed:
        raise UserError(
            f"Folder {output} holds features of another extraction ({'; '.join(changed)}): "
            "repeat its settings, or give --output another folder"
        )
