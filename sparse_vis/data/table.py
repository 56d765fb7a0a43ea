"""Images that a table lists: `table:FILE`, a CSV or Parquet file, or a text file with one path a line."""

import collections
import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparse_vis.data.address import LABELS, find_column, number_labels, split_address
from sparse_vis.data.folder import NAME_ERRORS, FilesSource, below_common
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.names import quoted
from sparse_vis.runtime.paths import as_path, fault, in_bucket
from sparse_vis.runtime.skipped import MAX_PIXELS

PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
TRIED = 1000  # files that are looked for when the table is opened
TRIED_IN_BUCKET = 20  # the same in a bucket, where each is a request


class TableSource(FilesSource):
    """The images that a table lists, in its order; names are paths below the folder that holds all of them.

    Args:
        address: FILE, or FILE#path=COLUMN,label=COLUMN,split=COLUMN; `label=` (empty) for no labels. Unless
            named, the columns are found by usual names; those of label and split may be missing. A `.txt`
            file has one path a line.
        split: only rows with this value in the column of splits; "" for all rows. Classes are those of all
            rows, so that splits agree on them.
        data_dir: folder where relative paths begin; "" for the folder of the table.

    Raises:
        UserError: the table is missing or damaged, lacks images, a column or the split, has a column or a
            file twice, or a listed file is missing. Only TRIED files, spread over the table, are looked for.
    """

    def __init__(self, address: str, *, split: str = "", data_dir: str = "", max_pixels: int = MAX_PIXELS):
        file, named = split_address(address, ("path", "label", "split"))
        file = os.path.expanduser(file)
        if file and (wrong := fault(file, buckets=True)):
            raise UserError(f"table {quoted(file)} {wrong}.")
        what = f"table {quoted(file)}"
        columns, faults = _read(file, what)

        def column(key: str, usual: Sequence[str]) -> str | None:
            found = find_column(columns, named.get(key), usual, what)
            if found in faults:
                raise UserError(f"{what} has {faults[found]}.")
            return found

        path = column("path", PATHS)
        if path is None:
            raise UserError(
                f"{what} has no column of paths ({', '.join(map(quoted, [*columns][:8]))}); name it as in "
                f"--config.data.source=table:{file}#path=COLUMN."
            )
        label, splits = column("label", LABELS), column("split", ("split",))
        paths = columns[path]
        labels, classes = number_labels(columns[label] if label else [None] * len(paths))
        rows = range(len(paths))
        if split:
            if splits is None:
                raise UserError(
                    f"{what} has no column 'split'; set --config.data.split= (empty) for all rows."
                )
            rows = [row for row in rows if str(columns[splits][row]) == split]
            if not rows:
                there = ", ".join(map(quoted, sorted({*map(str, columns[splits])})[:8]))
                raise UserError(f"{what} has no rows of split {split!r}; set --config.data.split to {there}.")
        if not len(rows):
            raise UserError(f"{what} lists no images; add rows, or correct --config.data.source.")
        if (empty := next((row for row in rows if not paths[row]), None)) is not None:
            raise UserError(f"row {empty + 1} of {what} has no path; complete or remove the row.")
        start = os.path.expanduser(data_dir) or os.path.dirname(file)
        full = [_join(start, paths[row]) for row in rows]
        _check_files(full, what)
        super().__init__(*below_common(full), labels[np.asarray(rows)], classes, max_pixels)
        self.about = f"of {file}" + (f", split {split}" if split else "")


def _join(start: str, path: str) -> str:
    """The full path of an image; relative paths begin at `start`."""
    if not in_bucket(start) and not in_bucket(path):
        return os.path.normpath(os.path.join(os.path.abspath(start), path))
    full = path if in_bucket(path) or os.path.isabs(path) else f"{start}/{path}"
    scheme = full[: full.find("://") + 3] if in_bucket(full) else ""
    return scheme + os.path.normpath(full.removeprefix(scheme))


def _check_files(full: list[str], what: str) -> None:
    """Raise UserError if a path is listed twice or missing, or if files are partly on disk, gs:// or s3://."""
    if len({name.partition("://")[0] if in_bucket(name) else "" for name in full}) > 1:
        raise UserError(f"{what} lists files on this machine and in buckets; make a table of each.")
    if len({*full}) < len(full):
        seen: set[str] = set()
        twice = next(name for name in full if name in seen or seen.add(name))
        raise UserError(f"{what} lists {quoted(twice)} twice; remove one of the rows.")
    tried = full[:: -(-len(full) // (TRIED_IN_BUCKET if in_bucket(full[0]) else TRIED))]
    there = (lambda name: as_path(name).exists()) if in_bucket(full[0]) else os.path.lexists
    if missing := [name for name in tried if not there(name)]:
        raise UserError(
            f"{what} lists {quoted(missing[0])}, which does not exist ({len(missing)} of {len(tried)} paths "
            "that were tried are missing); correct it, or set --config.data.path to the folder where the "
            "paths begin."
        )


def _read(file: str, what: str) -> tuple[dict[str, list], dict[str, str]]:
    """The columns of a table by name, and the names of columns that cannot be used -> why."""
    suffix = Path(file).suffix.lower()
    if suffix not in (*SEPARATORS, ".txt", ".parquet"):
        raise UserError(f"{what} is neither .csv, .tsv, .parquet nor .txt (one path a line); convert it.")
    unread = explained(OSError, f"{what} cannot be read", "correct --config.data.source.")
    damaged = explained((ValueError, csv.Error), f"{what} is damaged", "repair it, or write it again.")
    with unread, damaged:
        if suffix == ".parquet":
            return _read_parquet(file)
        text = as_path(file).read_bytes().decode("utf-8-sig", NAME_ERRORS)
        lines = io.StringIO(text, newline="")
        if suffix == ".txt":
            return {"path": [line for line in map(str.strip, lines) if line]}, {}
        reader = csv.DictReader(lines, delimiter=SEPARATORS[suffix], strict=True)
        rows, header = list(reader), reader.fieldnames or ()
        for number, row in enumerate(rows, 1):
            if None in row or None in row.values():
                raise ValueError(f"row {number} has another number of cells than the header")
        return {name: [row[name] for row in rows] for name in header}, _repeated(header)


def _repeated(names: Sequence[str]) -> dict[str, str]:
    """Names that several columns have -> what is wrong with them."""
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    return {name: f"more than one column {name!r}; rename or remove the others" for name in twice}


def _read_parquet(file: str) -> tuple[dict[str, list], dict[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = ("string", "large_string", "string_view", "integer", "floating", "boolean", "dictionary", "null")
    plain = [getattr(pa.types, f"is_{kind}") for kind in kinds]
    with as_path(file).open("rb") as opened:  # pyarrow takes paths with a colon for addresses
        # Only columns that may be paths, labels or splits: others may hold the images themselves.
        schema = pq.read_schema(opened)
        remedy = "write it as text or numbers, or read images inside the file with hf:parquet: for table:"
        faults = {
            field.name: f"a column {field.name!r} of type {str(field.type)[:40]}; {remedy}"
            for field in schema if not any(is_kind(field.type) for is_kind in plain)
        }  # fmt: skip
        faults |= _repeated(schema.names)  # which pyarrow cannot read by name
        opened.seek(0)
        table = pq.read_table(opened, columns=[name for name in schema.names if name not in faults])
        return {name: [] for name in faults} | table.to_pydict(), faults
