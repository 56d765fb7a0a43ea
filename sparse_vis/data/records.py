"""Records of a source as arrays, in order: what evaluations read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from sparse_vis.data.cut import centre_cut
from sparse_vis.data.decode import decode, to_square
from sparse_vis.data.sources import Source
from sparse_vis.errors import UserError

BICUBIC, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
T = TypeVar("T")


@dataclass(frozen=True)
class Records:
    """Records of a source as arrays, for evaluations.

    Attributes:
        image: (n, size, size, 3) uint8.
        name: n names.
        label: (n,) int32 class, -1 where a record has none; None if the source has no labels.
        mask: (n, size, size) uint8 instances, 0 for ground; None if the source has no masks.
        labels: (n, k) int32 set of classes in each image, padded with -1; None if the source has no sets.
    """

    image: UInt8[np.ndarray, "n size size 3"]
    name: tuple[str, ...]
    label: Int32[np.ndarray, " n"] | None
    mask: UInt8[np.ndarray, "n size size"] | None
    labels: Int32[np.ndarray, "n k"] | None


def read_records(
    source: Source, indices: Sequence[int], *, size: int, short_side: int, resize: str = "antialiased"
) -> Records:
    """Reads records in the given order: short side resized (bicubic), centre cut out.

    Args:
        source: random-access records.
        indices: numbers of the records, at least one.
        size: side of the square images in pixels.
        short_side: length of the short side before the cut, at least `size`; published: 256 for 224.
        resize: "antialiased" (Pillow), or "published": `data/cut.py`, rounded to 8 bits.

    Raises:
        UserError: no or too large numbers, short_side is below size, or a record cannot be decoded.
    """
    if not len(indices) or not 0 <= min(indices) <= max(indices) < len(source):
        raise UserError(f"{len(indices)} records asked of {source!r} with {len(source)}; ask for fewer.")
    if short_side < size:
        raise UserError(
            f"short side {short_side} is below the image size {size}; raise it to {size} or more."
        )
    columns: dict[str, list] = {"image": [], "name": [], "label": [], "mask": [], "labels": []}
    for index in indices:
        record = source[int(index)]
        pixels = decode(record)
        if resize == "published":
            cut = centre_cut(*pixels.shape[:2], size, short_side)
            record["image"] = np.uint8(np.rint(255 * cut.image(pixels)))
        else:
            record["image"] = to_square(pixels, size, short_side=short_side, resample=BICUBIC)
        if "mask" in record:
            record["mask"] = to_square(record["mask"], size, short_side=short_side, resample=NEAREST)
        for key, value in record.items():
            columns[key].append(value)
    return Records(
        image=np.stack(columns["image"]),
        name=tuple(columns["name"]),
        label=np.array(columns["label"], np.int32) if columns["label"] else None,
        mask=np.stack(columns["mask"]) if columns["mask"] else None,
        labels=_padded(columns["labels"]) if columns["labels"] else None,
    )


def _padded(sets: list[np.ndarray]) -> Int32[np.ndarray, "n k"]:
    """Sets of classes as rows, filled up with -1 to the longest."""
    longest = max(map(len, sets))
    return np.stack([np.pad(row, (0, longest - len(row)), constant_values=-1) for row in sets])


def in_batches(
    load: Callable[[np.ndarray], T], indices: np.ndarray, batch_size: int, threads: int
) -> Iterator[T]:
    """What `load` makes of batches of numbers, in order; threads load the next ones meanwhile.

    Args:
        load: numbers of the records of one batch → anything. indices: of all records.
        batch_size: records per call, the last one may have fewer. threads: batches loaded at a time.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        try:
            for start in range(0, len(indices), batch_size):
                waiting.append(pool.submit(load, indices[start : start + batch_size]))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
