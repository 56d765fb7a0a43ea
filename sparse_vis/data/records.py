"""A stretch of a source as arrays, in order: what evaluations read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from sparse_vis.data.decode import decode, to_square
from sparse_vis.data.sources import Source
from sparse_vis.errors import UserError

BICUBIC, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST


@dataclass(frozen=True)
class Records:
    """Records of a source as arrays, for evaluations.

    Attributes:
        image: (n, size, size, 3) uint8.
        name: n names.
        label: (n,) int32 class, -1 where a record has none; None if the source has no labels.
        mask: (n, size, size) uint8 instances, 0 for ground; None if the source has no masks.
        labels: (n, 4) int32 classes of the instances, padded with -1; None if the source has no masks.
    """

    image: UInt8[np.ndarray, "n size size 3"]
    name: tuple[str, ...]
    label: Int32[np.ndarray, " n"] | None
    mask: UInt8[np.ndarray, "n size size"] | None
    labels: Int32[np.ndarray, "n 4"] | None


def read_records(source: Source, *, start: int, stop: int, size: int, short_side: int) -> Records:
    """Reads records [start, stop) in the source's order: short side resized (bicubic), centre cut out.

    Args:
        source: random-access records.
        start: first record.
        stop: end of the range; must not exceed len(source).
        size: side of the square images in pixels.
        short_side: length of the short side before the cut, at least `size`; published: 256 for 224.

    Raises:
        UserError: the range is empty or too long, short_side is below size, or a record cannot be decoded.
    """
    if not 0 <= start < stop <= len(source):
        raise UserError(f"Records {start} to {stop} asked of {source!r} with {len(source)}: ask for fewer")
    if short_side < size:
        raise UserError(f"Short side {short_side} is below the image size {size}: raise it to {size} or more")
    columns: dict[str, list] = {"image": [], "name": [], "label": [], "mask": [], "labels": []}
    for index in range(start, stop):
        record = source[index]
        record["image"] = to_square(decode(record), size, short_side=short_side, resample=BICUBIC)
        if "mask" in record:
            record["mask"] = to_square(record["mask"], size, short_side=short_side, resample=NEAREST)
        for key, value in record.items():
            columns[key].append(value)
    return Records(
        image=np.stack(columns["image"]),
        name=tuple(columns["name"]),
        label=np.array(columns["label"], np.int32) if columns["label"] else None,
        mask=np.stack(columns["mask"]) if columns["mask"] else None,
        labels=np.stack(columns["labels"]) if columns["labels"] else None,
    )
