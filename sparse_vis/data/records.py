"""Read the records of a source in order, with threads that load the next ones meanwhile."""

import contextlib
import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from sparse_vis.data.cut import centre_cut
from sparse_vis.data.decode import decode, fitted, to_square
from sparse_vis.data.sources import Source
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.skipped import Skips

BICUBIC, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
SHORT_SIDE = 256 / 224  # of an image before its centre crop, relative to the crop, as published
R, T = TypeVar("R"), TypeVar("T")


@dataclass(frozen=True)
class Records:
    """n records of a source as arrays, for evaluations; None for what its records do not have.

    Attributes:
        label: class, -1 for a record without one.
        mask: number of the object at each pixel, 0 for background.
        labels: set of classes in each image, padded with -1.
        objects: which object each of `labels` is, padded with -1.
    """

    image: UInt8[np.ndarray, "n size size 3"]
    name: tuple[str, ...]
    label: Int32[np.ndarray, " n"] | None
    mask: UInt8[np.ndarray, "n size size"] | None
    labels: Int32[np.ndarray, "n k"] | None
    objects: Int32[np.ndarray, "n k"] | None


def read_records(
    source: Source,
    indices: Sequence[int] | np.ndarray,
    *,
    size: int,
    short_side: int,
    resize: str = "antialiased",
) -> Records:
    """Read records in the given order. Images are resized at their short side (bicubic) and centre-cropped.

    Args:
        size: side of the square images in pixels.
        short_side: pixels of the short side before the crop, at least `size`; published: 256 for 224.
        resize: "antialiased" (Pillow), or "published" (`data/cut.py`, rounded to 8 bits).

    Raises:
        UserError: no indices or one out of range, short_side below size, or a record cannot be decoded.
    """
    if not len(indices) or not 0 <= min(indices) <= max(indices) < len(source):
        raise UserError(
            f"{source!r} has {len(source)} records, but not those requested; request 1 or more of them."
        )
    if short_side < size:
        raise UserError(
            f"the short side ({short_side} px) is smaller than the image size ({size} px); use {size} or "
            "more."
        )
    records = [source[int(index)] for index in indices]
    has = {key for record in records for key in record}
    none = np.zeros(0, np.int32)

    def square(pixels: np.ndarray, resample: Image.Resampling = BICUBIC) -> np.ndarray:
        if resize == "published" and resample == BICUBIC:
            return np.uint8(np.rint(255 * centre_cut(*pixels.shape[:2], size, short_side).image(pixels)))
        return to_square(pixels, size, short_side=short_side, resample=resample)

    return Records(
        image=np.stack([square(decode(r)) for r in records]),
        name=tuple(r["name"] for r in records),
        label=np.array([r.get("label", -1) for r in records], np.int32) if "label" in has else None,
        mask=np.stack([square(r["mask"], NEAREST) for r in records]) if "mask" in has else None,
        labels=_padded([r.get("labels", none) for r in records]) if "labels" in has else None,
        objects=_padded([r.get("objects", none) for r in records]) if "objects" in has else None,
    )


def _padded(sets: list[np.ndarray]) -> Int32[np.ndarray, "n k"]:
    """Sets of classes as rows, padded with -1 to the longest."""
    longest = max(map(len, sets))
    return np.stack([np.pad(row, (0, longest - len(row)), constant_values=-1) for row in sets])


class LoadedImage(NamedTuple):
    """An image ready for the encoder."""

    name: str
    height: int  # this and the width: of the upright original, in pixels
    width: int
    pixels: np.ndarray  # uint8, (size, size, 3) or (*size, 3)
    label: int  # number of its class, -1 if it has none


def load_image(
    source: Source, index: int, size: int | tuple[int, int], short_side: int | None = None, *,
    letterbox: bool = False,
) -> LoadedImage:  # fmt: skip
    """Decode one image; resize its short side (bicubic, antialiased) and crop a square of `size` pixels.

    The short side has `short_side` pixels, SHORT_SIDE * size unless given. With `letterbox`, or if `size` is
    (height, width), the image is resized by `fitted` instead.
    """
    record = source[index]
    pixels, square = decode(record), isinstance(size, int)
    if letterbox or not square:
        image = fitted(pixels, (size, size) if square else size, letterbox=letterbox)
    else:
        image = to_square(pixels, size, short_side=short_side or round(SHORT_SIDE * size), resample=BICUBIC)
    return LoadedImage(record["name"], *pixels.shape[:2], image, record.get("label", -1))


def in_batches(
    load: Callable[[np.ndarray], T], indices: np.ndarray, batch_size: int, threads: int
) -> Iterator[T]:
    """Yield `load(batch of indices)` in order, while threads load the next batches, one each."""
    batches = (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))
    for _, future in load_ahead(load, batches, threads, ahead=threads):
        yield future.result()


def load_ahead(
    load: Callable[[R], T], items: Iterable[R], threads: int, ahead: int
) -> Iterator[tuple[R, Future[T]]]:
    """Yield (item, future of `load(item)`) in order, while threads load at most `ahead` further items."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[R, Future[T]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(load, item)))
                if len(waiting) > ahead:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()


@contextlib.contextmanager
def images_ahead(
    source: Source, load: Callable[[int], T], indices: list[int], *, threads: int, ahead: int, on_error: str,
    skip: str = "--on-error=skip",
) -> Iterator[Callable[[int], tuple[Iterator[T], Skips]]]:  # fmt: skip
    """Context that loads images in order, ahead of their use; it yields a function `take`.

    `take(count)` returns an iterator over the usable ones of the next `count` images, and a list that has
    (name, reason) of the others when the iterator ends.

    Args:
        load, indices, threads, ahead: as for `load_ahead`.
        on_error: "stop" raises a UserError at the first image that cannot be used; or "skip".
        skip: what that error says to pass for "skip"; "" if the user has no such choice.
    """
    # Closed here: else, after an error such as a full disk, one of its own threads might have to close it,
    # and would wait for itself.
    with contextlib.closing(load_ahead(load, indices, threads, ahead)) as futures:

        def usable(count: int, skipped: Skips) -> Iterator[T]:
            for index, future in islice(futures, count):
                try:
                    yield future.result()
                except UserError as error:
                    if on_error == "stop":
                        raise (or_skip(error, skip) if skip else error) from None
                    skipped.append((name_of(source, index), str(error)))

        def take(count: int) -> tuple[Iterator[T], Skips]:
            skipped: Skips = []
            return usable(count, skipped), skipped

        yield take


def image_batches(
    source: Source, indices: Sequence[int] | np.ndarray, size: int, batch: int, on_error: str = "stop",
    skip: str = "",
) -> Iterator[list[LoadedImage]]:  # fmt: skip
    """Yield the usable ones of these images as `load_image` prepares them, `batch` at a time.

    `on_error` and `skip` are those of `images_ahead`. Raises UserError also if no image can be used.
    """
    load, threads = functools.partial(load_image, source, size=size), os.cpu_count() or 1
    how = dict(threads=threads, ahead=2 * batch, on_error=on_error, skip=skip)
    with images_ahead(source, load, [int(i) for i in indices], **how) as take:
        images, skipped = take(len(indices))
        found = 0
        while some := list(islice(images, batch)):
            found += len(some)
            yield some
    if not found:
        raise none_usable(len(indices), skipped)
    if skipped:
        print(f"note: {len(skipped)} images cannot be used; the first: {skipped[0][1]}", flush=True)


def none_usable(count: int, skipped: Skips, what: str = "images") -> UserError:
    """The error if all of `count` images were skipped; it names the first."""
    return UserError(f"none of the {count} {what} can be used; the first one: {skipped[0][1].rstrip('.')}.")


def or_skip(error: UserError, how: str) -> UserError:
    """The error of an unusable image, with a further remedy: `how`, the flag that skips it."""
    return UserError(f"{str(error).rstrip('.')}, or pass {how}.")


def has_labels(source: Source) -> bool:
    """Whether records have a `label`, not only sets of classes; reads the first record if it has to."""
    if not source.classes or hasattr(source, "labels"):
        return bool(source.classes) and source.labels is not None
    try:
        return "label" in source[0]
    except UserError:
        return not getattr(source, "sets", False)


def known_labels(source: Source) -> Int32[np.ndarray, " n"] | None:
    """The class of every record, -1 for none; None if there are no classes, or only the records know them."""
    labels = getattr(source, "labels", None) if source.classes else None
    return None if labels is None else np.asarray(labels, np.int32)


def name_of(source: Source, index: int) -> str:
    """The name of a record, if possible without reading its image; "#number" if it cannot be read."""
    if hasattr(source, "name_of"):
        return source.name_of(index)
    try:
        return source[index]["name"]
    except UserError:
        return f"#{index}"
