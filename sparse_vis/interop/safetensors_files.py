"""Read safetensors files and their shards; write them with a checksum of every tensor.

The format itself has no checksums: in other files, a flipped bit that gives a finite number goes unnoticed.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save_file

from sparse_vis.interop.damaged import damaged
from sparse_vis.runtime.errors import UserError

CHECKSUMS = "sparse_vis.crc32"  # key of the file's metadata: JSON of tensor name -> checksum


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's element type, shape and bytes."""
    start = zlib.crc32(f"{array.dtype.name}{array.shape}".encode())
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), start)


def write_safetensors(tensors: dict[str, np.ndarray], path: Path) -> None:
    """Write tensors with their checksums; the same tensors always give the same bytes.

    Raises:
        OSError, safetensors.SafetensorError: the file cannot be written.
    """
    sums = {name: checksum(array) for name, array in tensors.items()}
    save_file(tensors, path, {"format": "pt", CHECKSUMS: json.dumps(sums)})
    # The library writes the metadata's keys in random order.
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) == length:
            file.seek(8)
            file.write(text)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file, checked against their checksums if it has them.

    Raises:
        UserError: a damaged file, or a tensor of an element type that NumPy lacks.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            found = {name: _tensor(file, name, path) for name in file.keys()}  # noqa: SIM118 (not a dict)
            sums = json.loads((file.metadata() or {}).get(CHECKSUMS, "{}"))
        changed = [name for name, value in sums.items() if name in found and checksum(found[name]) != value]
    except UserError:
        raise
    except Exception as error:  # on damage, of any type
        raise damaged(path, "safetensors", error) from error
    changed += sorted(sums.keys() ^ found.keys()) if sums else []
    if changed:
        raise UserError(
            f"{path} is damaged: {changed[0]} is not what its checksum says ({len(changed)} tensors in all); "
            "download or export it again."
        )
    return found


def _tensor(file, name: str, path: Path) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except (AttributeError, KeyError, TypeError):  # e.g. float8
        raise UserError(
            f"{path} cannot be read: {name} is a tensor of {file.get_slice(name).get_dtype()} that NumPy "
            "cannot hold; save it as float32."
        ) from None


def shards(index: Path) -> list[str]:
    """File names in the index of a model saved in parts (model.safetensors.index.json).

    Raises:
        UserError: the index cannot be read, or names a file outside its folder.
    """
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        inside = all(name and name == Path(name).name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(index, "index of shards", "no weight_map of names") from error
    if not names or not inside:
        raise UserError(f"{index} names no files of its own folder; download it again.")
    return names
