"""Parquet shards of features and the folder they are in; docs/extraction.md describes the files.

A shard appears under its name only when it is complete, and a manifest tells a continued extraction from
another one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparse_vis.errors import UserError
from sparse_vis.progress import REPORT_SECONDS
from sparse_vis.runtime.files import write_whole
from sparse_vis.runtime.lock import LOCK
from sparse_vis.runtime.names import escaped

POLL_SECONDS = 0.2
DTYPES = {"float32": pa.float32(), "float16": pa.float16()}
MANIFEST, SKIPPED = "manifest.json", "skipped.txt"
IMAGES = b"images_sha256"  # in a shard's schema: of names and sizes

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
        values = list(map(escaped, rows[name])) if name == "name" else rows[name]
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
        # An open file: a name with a colon would be an address to pyarrow.
        with partial.open("wb") as file:
            with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
                for rows in batches:
                    writer.write_table(_table(rows, schema))
                # In the shard itself, so that it cannot disagree with the rows that are there.
                writer.add_key_value_metadata({"skipped": json.dumps(skipped)})
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_shard(path: Path) -> tuple[int, Skips]:
    """Number of rows of a finished shard, and the images that it left out.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = pq.read_metadata(file)
        skipped = json.loads(found.metadata[b"skipped"])
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"shard {path} is damaged ({reason}); delete it to have it written again.") from None
    return found.num_rows, [(name, reason) for name, reason in skipped]


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


def finish(output: Path, manifest: dict, shards: list[Path]) -> tuple[int, int]:
    """Write what is known when all shards are there: skipped.txt, and the manifest with the shards' rows.

    Args:
        output: folder. manifest: of `open_output`. shards: all of them.

    Returns:
        (rows, skipped images) of all shards.
    """
    found = {path.name: read_shard(path) for path in shards}
    skips = sorted(
        f"{escaped(name)}\t{' '.join(reason.split())}\n"
        for _, skipped in found.values()
        for name, reason in skipped
    )
    write_whole(output / SKIPPED, "".join(skips))
    counts = {name: {"rows": rows, "skipped": len(skipped)} for name, (rows, skipped) in found.items()}
    write_whole(output / MANIFEST, json.dumps(manifest | {"shards": counts}, indent=2) + "\n")
    return sum(rows for rows, _ in found.values()), len(skips)


def open_output(output: Path, manifest: dict, first: bool) -> None:
    """Create the output folder with its manifest, or make sure that it belongs to the same extraction.

    Args:
        output: folder. manifest: of this extraction; its "checkpoint" is a note and may differ.
        first: whether this is the process that creates; others wait for it.

    Raises:
        UserError: it holds something else, or features of other settings.
    """
    from sparse_vis.train.settings import differences

    path = output / MANIFEST
    if first and not path.exists():
        if output.is_dir() and any(inside.name != LOCK for inside in output.iterdir()):
            raise UserError(f"folder {output} holds something else; give --output a new or empty folder.")
        output.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(manifest, indent=2) + "\n")
        return
    wait_for([path], "manifest")
    free = {"checkpoint": "", "shards": {}}
    try:
        changed = differences(json.loads(path.read_text()) | free, manifest | free)
    except (ValueError, TypeError):
        raise UserError(f"{path} is no manifest of an extraction; give --output another folder.") from None
    if changed:
        raise UserError(
            f"folder {output} holds features of another extraction ({'; '.join(changed)}); "
            "repeat its settings, or give --output another folder."
        )


def drop_changed(shards: dict[Path, str | None]) -> None:
    """Delete finished shards whose images have been replaced since: they are written again.

    Args:
        shards: path → checksum of its images as they are now, of `images_sha256`; None if there is none.
    """
    for path, now in shards.items():
        try:
            then = (pq.read_schema(path).metadata or {}).get(IMAGES)
        except (OSError, pa.ArrowException):  # missing, or damaged, which `read_shard` says
            continue
        if then is not None and then.decode() != (now or ""):
            print(f"note: images of {path.name} have changed; it is written again", flush=True)
            path.unlink(missing_ok=True)
