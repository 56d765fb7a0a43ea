"""Label maps (the class of every pixel), from the objects of a scene or from PNG files."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sparse_vis.data.decode import EXTENSIONS, decode
from sparse_vis.data.folder import FilesSource, files_sha256
from sparse_vis.data.records import in_batches
from sparse_vis.evals.dataset import Data, Part
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import escaped, quoted

IGNORE = 255  # label of pixels that do not count


def label_map(part: Part, record: dict[str, Any]) -> UInt8[np.ndarray, "H W"]:
    """The class of every pixel of a record, or IGNORE; in scenes 0 is background, 1 + class an object.

    With `part.masks`, it is read from the PNG file of the image's name there. Raises UserError if the file
    is missing, is not an 8-bit map of the image's size, or has a class out of range.
    """
    if part.masks is None:
        return np.append(0, record["labels"] + 1).astype(np.uint8)[record["mask"]]
    path = _path(part.masks, record["name"])
    where = escaped(str(path))
    try:
        with Image.open(path) as file:
            found = np.asarray(file)
    except (OSError, SyntaxError) as error:
        raise UserError(f"label map {where} cannot be read ({error}); restore it.") from None
    shape = decode(record).shape[:2]
    if found.shape != shape or found.dtype != np.uint8:
        raise UserError(
            f"label map {where} is {found.dtype} of shape {found.shape}; it must be 8-bit, one channel or a "
            f"palette, and of its image's size {shape}."
        )
    if part.map_shift == -1:  # 0 becomes 255; 255 stays
        found = np.where(found == IGNORE, found, found - np.uint8(1))
    highest = found.max(where=found != IGNORE, initial=0)
    if highest >= part.map_classes:
        shifted = f", shifted by {part.map_shift}" if part.map_shift else ""
        raise UserError(
            f"label map {where} has class {highest}{shifted}, but "
            f"config.eval.mask_classes={part.map_classes}; raise it, or use {IGNORE} for pixels to ignore."
        )
    return found


def _path(masks: pathlib.Path, name: str) -> pathlib.Path:
    """Path of an image's label map. Raises UserError for a name that leads out of the folder."""
    below = pathlib.PurePath(name)
    if below.is_absolute() or ".." in below.parts:
        raise UserError(f"the image name {quoted(name)} leads out of the folder {masks}; give one below it.")
    return masks / f"{name.removesuffix(below.suffix) if below.suffix.lower() in EXTENSIONS else name}.png"


def maps_sha256(data: Data) -> str | None:
    """Checksum of names, sizes and times of all files of label maps; None if the source has its own maps."""
    if data.parts["test"].masks is None:
        return None
    names = sorted(str(path) for part in data.parts.values() for path in part.masks.rglob("*.png"))
    return files_sha256("", names, times=True)


def check_maps(part: Part) -> None:
    """Raise UserError if a part's first label map is invalid or, for a folder of images, any is missing."""
    if part.masks is not None and not part.masks.is_dir():
        where = escaped(str(part.masks))
        raise UserError(f"config.eval.masks={where} is not a folder; give the folder with the label maps.")
    label_map(part, part.example())
    if part.masks is not None and isinstance(part.source, FilesSource):
        paths = (_path(part.masks, part.source.names[i]) for i in part.indices)
        missing = next((path for path in paths if not path.is_file()), None)
        if missing is not None:
            what = f"label map {escaped(str(missing))} is missing"
            raise UserError(f"{what}; config.eval.masks needs one for every image.")


def check_every_map(part: Part) -> None:
    """Raise UserError if a label map is invalid; reads all of them, and all images for their sizes."""
    for _ in in_batches(
        lambda rows: [label_map(part, part.record(row)) for row in rows], part.indices, 16, part.threads
    ):
        pass


def centre_square(
    labels: UInt8[np.ndarray, "H W"], *, size: int, short_side: int
) -> UInt8[np.ndarray, "side side"]:
    """The centre square of a label map that the encoder's image shows, at the map's resolution.

    `size` and `short_side` are those of the encoder's image, as in `read_records`.
    """
    side = round(size * min(labels.shape) / short_side)
    top, left = ((length - side) // 2 for length in labels.shape)
    return labels[top : top + side, left : left + side]
