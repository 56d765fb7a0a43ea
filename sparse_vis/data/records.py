"""Records of a source as arrays, for evaluations."""

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
from sparse_vis.runtime.errors import UserError

BICUBIC, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
T = TypeVar("T")


@dataclass(frozen=True)
class Records:
    """Records of a source as arrays, for evaluations.

    Attributes:
        image: (n, size, size, 3) uint8.
        name: names of the n records.
        label: (n,) int32 class, -1 for a record without one; None if the source has no labels.
        mask: (n, size, size) uint8 instance numbers, 0 for background; None if the source has no masks.
        labels: (n, k) int32 set of classes in each image, padded with -1; None if the source has no sets.
    """

    image: UInt8[np.ndarray, "n size size 3"]
    name: tuple[str, ...]
    label: Int32[np.ndarray, " n"] | None
    mask: UInt8[np.ndarray, "n size size"] | None
    labels: Int32[np.ndarray, "n k"] | None


def read_records(
    source: Source,
    indices: Sequence[int] | np.ndarray,
    *,
    size: int,
    short_side: int,
    resize: str = "antialiased",
) -> Records:
    """Read records in the given order: resize the short side (bicubic), then crop the centre.

    Args:
        source: random-access records.
        indices: of the records, at least one.
        size: side of the square images in pixels.
        short_side: pixels of the short side before the crop, at least `size`; published: 256 for 224.
        resize: "antialiased" (Pillow), or "published": `data/cut.py`, rounded to 8 bits.

    Raises:
        UserError: no indices or one out of range, short_side below size, or a record cannot be decoded.
    """
    if not len(indices) or not 0 <= min(indices) <= max(indices) < len(source):
        raise UserError(f"{len(indices)} records asked of {source!r} with {len(source)}; ask for fewer.")
    if short_side < size:
        raise UserError(
            f"short side {short_side} is below the image size {size}; raise it to {size} or more."
        )
    records = [source[int(index)] for index in indices]
    sides = dict(size=size, short_side=short_side)
    has = {key for record in records for key in record}
    none = np.zeros(0, np.int32)

    def square(pixels: np.ndarray) -> np.ndarray:
        if resize == "published":
            return np.uint8(np.rint(255 * centre_cut(*pixels.shape[:2], size, short_side).image(pixels)))
        return to_square(pixels, **sides, resample=BICUBIC)

    return Records(
        image=np.stack([square(decode(r)) for r in records]),
        name=tuple(r["name"] for r in records),
        label=np.array([r.get("label", -1) for r in records], np.int32) if "label" in has else None,
        mask=np.stack([to_square(r["mask"], **sides, resample=NEAREST) for r in records])
        if "mask" in has
        else None,
        labels=_padded([r.get("labels", none) for r in records]) if "labels" in has else None,
    )


def _padded(sets: list[np.ndarray]) -> Int32[np.ndarray, "n k"]:
    """Sets of classes as rows, padded with -1 to the longest."""
    longest = max(map(len, sets))
    return np.stack([np.pad(row, (0, longest - len(row)), constant_values=-1) for row in sets])


def in_batches(
    load: Callable[[np.ndarray], T], indices: np.ndarray, batch_size: int, threads: int
) -> Iterator[T]:
    """Yield `load(batch of indices)` in order, while threads load the next batches.

    Args:
        load: indices of one batch -> anything. indices: of all records.
        batch_size: records per call; the last call may have fewer. threads: batches loaded at a time.
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
