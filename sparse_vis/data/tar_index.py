"""An index of where images lie in tar files: it is built once, stored in a file, and mapped into memory.

The file consists of MAGIC, the length of the header (8 bytes, little-endian), the header (JSON), an array of
SAMPLE, and all names, one after another.
"""

import array
import collections
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparse_vis.data.address import LABELS, number_labels
from sparse_vis.data.decode import EXTENSIONS
from sparse_vis.data.folder import NAME_ERRORS
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.files import whole
from sparse_vis.runtime.names import quoted
from sparse_vis.runtime.progress import Progress

MAGIC, BLOCK, MB = b"SVTARS01", 512, 1_000_000
# `name` is the end of the sample's name within all names; offset and size of the image are in bytes.
SAMPLE = np.dtype([("offset", "<u8"), ("size", "<u8"), ("name", "<u8"), ("shard", "<u4"), ("label", "<i4")])
PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7z": "xz", b"(\xb5/\xfd": "zstd"}
WITHOUT = "samples without an image"


class Index(NamedTuple):
    """An index, mapped into memory: only the pages that are read are loaded."""

    header: dict[str, Any]
    samples: np.ndarray  # of SAMPLE
    names: np.ndarray  # uint8


def build(path: Path, tars: list[str], shown: list[str], image: str | None, label: str | None) -> None:
    """Read the headers of all members and write the index to `path`, whole or not at all.

    Args:
        shown: names of the tars, with which names of images begin.
        image: extension of the images; None for EXTENSIONS.
        label: key in the `.json` members, or "cls"; "" for no labels; None for `.cls`, else one of LABELS.

    Raises:
        UserError: a tar is damaged, compressed or cut short, a label cannot be read, or there is no image.
    """
    # Offset, size, end of the name, and shard of each sample: the first columns of SAMPLE.
    rows, names, labels, others = array.array("Q"), bytearray(), [], collections.Counter()
    sizes, times = [os.path.getsize(tar) for tar in tars], [os.stat(tar).st_mtime_ns for tar in tars]
    progress, done = Progress("indexing tars", -(-sum(sizes) // MB), unit="MB"), 0
    for shard, (tar, size) in enumerate(zip(tars, sizes, strict=True)):
        for name, offset, length, of_image in _samples(tar, image, label, others):
            names += name.encode(errors=NAME_ERRORS)
            rows.extend((offset, length, len(names), shard))
            labels.append(of_image)
            if (read_mb := (done + offset) // MB) > progress.done:
                progress.add(read_mb - progress.done)
        done += size
    progress.add(progress.total - progress.done)
    if not labels:
        found = ", ".join(f"{count} {kind}" for kind, count in others.most_common(8))
        kinds = f".{image}" if image else ", ".join(EXTENSIONS)
        raise UserError(
            f"{quoted(tars[0])}{' …' * (len(tars) > 1)} holds no image ({kinds}; only {found or 'nothing'}); "
            "name another extension after the address, as in #image=jpg, or correct --config.data.source."
        )
    if label and all(value is None for value in labels):
        raise UserError(f"no sample of {quoted(tars[0])} has a label {label!r}; correct #label=.")
    samples = np.zeros(len(labels), SAMPLE)
    for column, values in zip(SAMPLE.names[:4], np.array(rows).reshape(-1, 4).T, strict=True):
        samples[column] = values
    samples["label"], classes = number_labels(labels)
    body = samples.tobytes() + bytes(names)
    shards = [list(row) for row in zip(shown, sizes, strict=True)]
    identity = hashlib.sha256(json.dumps(shards).encode() + body).hexdigest()
    header = {
        "shards": shards, "classes": classes, "samples": len(samples), "left_out": others,
        "images_sha256": identity, "times": times, "crc32": zlib.crc32(body),
    }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    own = path.with_name(f"{path.name}.{os.getpid()}")  # several processes may do the same
    with whole(own) as partial:
        partial.write_bytes(MAGIC + len(text).to_bytes(8, "little") + text + body)
    os.replace(own, path)


def read(path: Path) -> Index:
    """Map an index into memory. Raises ValueError if it is damaged."""
    mapped = np.memmap(path, np.uint8, "r")
    if mapped[:8].tobytes() != MAGIC:
        raise ValueError("no index")
    start = 16 + int.from_bytes(mapped[8:16].tobytes(), "little")
    header, check = json.loads(mapped[16:start].tobytes()), 0
    for at in range(start, len(mapped), MB):
        check = zlib.crc32(mapped[at : at + MB], check)
    if check != header["crc32"]:
        raise ValueError("damaged")
    end = start + header["samples"] * SAMPLE.itemsize
    return Index(header, mapped[start:end].view(SAMPLE), mapped[end:])


def _samples(path: str, image: str | None, label: str | None, left: collections.Counter) -> Iterator[tuple]:
    """(name, offset, size, label) of each image of a tar; members whose names agree up to the first dot are
    one sample."""
    key, found, labels = None, [], {}

    def finish() -> Iterator[tuple]:
        if len(found) > 1:
            raise UserError(
                f"{quoted(path)} has several images of one name, {quoted(found[0][0])} and "
                f"{quoted(found[1][0])}; name the extension after the address, as in #image=jpg."
            )
        if found:
            yield *found[0], _label(labels, label, path)
        elif key is not None:
            left[WITHOUT] += 1

    for info, read_member in _members(path):
        folder, _, base = info.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if (folder, stem) != key:
            yield from finish()
            key, found, labels = (folder, stem), [], {}
        extension = extension.lower()
        if extension == image.lower() if image else f".{extension}" in EXTENSIONS:
            found.append((info.name, info.offset_data, info.size))
        elif extension in ("cls", "json") and label != "":
            labels[extension] = (info.name, read_member())
        else:
            left[f".{extension}" if extension else "without extension"] += 1
    yield from finish()


def _label(labels: dict[str, tuple[str, bytes]], named: str | None, path: str) -> int | str | None:
    """The label in a sample's `.cls` or `.json` member; None if there is none."""
    kind = "json" if named not in (None, "cls") or "cls" not in labels else "cls"
    if kind not in labels or (named == "cls" and kind == "json"):
        return None
    name, data = labels[kind]
    remedy = "name a JSON key after the address, as in #label=KEY, or none: #label="
    with explained(ValueError, f"member {quoted(name)} of {quoted(path)} is not a label", remedy):
        value = data.decode().strip() if kind == "cls" else json.loads(data)
        if kind == "json":
            keys = (named,) if named else LABELS
            if isinstance(value, dict):
                value = next((value[key] for key in keys if key in value), None)
        if isinstance(value, bool) or not isinstance(value, int | str | None):
            raise ValueError(f"its label is {value!r:.40}, neither a number nor a string")
        return value


def _members(path: str) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """The files of a tar, each with a function that reads it. Also checks that the tar has an end."""
    size = os.path.getsize(path)
    what = f"tar {quoted(path)}"
    with open(path, "rb") as file:
        begin = file.read(4)
        file.seek(0)
        if packer := next((name for magic, name in PACKERS.items() if begin.startswith(magic)), None):
            raise UserError(f"{what} is compressed ({packer}), and cannot be read at random; decompress it.")
        damaged = tarfile.TarError, OSError
        with explained(damaged, f"{what} is damaged", "copy it again, or leave it out."):
            with tarfile.open(fileobj=file, mode="r:", errors=NAME_ERRORS) as tar:
                while (info := tar.next()) is not None:
                    tar.members.clear()  # else all of them stay in memory
                    if info.isreg() and not info.sparse:
                        yield info, lambda info=info: os.pread(file.fileno(), info.size, info.offset_data)
                # Python mistakes damage after the first member for the end, so this is checked below.
                end = tar.offset
            file.seek(end)
            if file.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError(f"no header at byte {end}" if end < size else "its end is missing")
            while rest := file.read(MB):
                if rest.strip(b"\0"):
                    raise tarfile.ReadError("another archive follows its end")
